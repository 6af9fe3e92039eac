//! What systemd is asked to hold a unit to, over a socketpair, without a bus.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{collections::BTreeMap, os::unix::net::UnixStream, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use vmd::{
    definition::Share,
    hypervisor::detect::Accel,
    limits::UnitFacts,
    live::Live,
    systemd::{Limits, hold},
};
use zbus::{OwnedVariant, connection::Builder, interface};

const LONG: Duration = Duration::from_secs(10);

type Told = (String, bool, BTreeMap<String, u64>);

struct Manager {
    told: mpsc::UnboundedSender<Told>,
    refuses: bool,
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn set_unit_properties(
        &self,
        name: String,
        runtime: bool,
        properties: Vec<(String, OwnedVariant)>,
    ) -> zbus::fdo::Result<()> {
        let own = |(name, value): (String, OwnedVariant)| (name, u64::try_from(value).unwrap());
        let properties = properties.into_iter().map(own).collect();
        self.told.send((name, runtime, properties)).unwrap();
        if self.refuses {
            return Err(zbus::fdo::Error::AccessDenied("no".to_owned()));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_units_limits_are_set_once_and_follow_a_resize() {
    for refuses in [false, true] {
        let (tell, mut told) = mpsc::unbounded_channel();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let manager = Manager {
            told: tell,
            refuses,
        };
        let server = Builder::unix_stream(theirs)
            .server(zbus::Guid::generate())
            .p2p()
            .serve_at("/org/freedesktop/systemd1", manager)
            .build();
        let client = Builder::unix_stream(ours).p2p().build();
        let (_server, client) = tokio::join!(async { server.await.unwrap() }, async {
            client.await.unwrap()
        });
        let (live, watched) = watch::channel(Live {
            cpu_cores: 1,
            memory_mb: 256,
            ..Live::default()
        });
        let limits = Limits {
            facts: UnitFacts::default(),
            share: Share {
                cpu_quota_percent: 50,
                ..Share::default()
            },
            vmm: "qemu",
            accel: Accel::Tcg,
        };
        let name = "web".parse().unwrap();
        let holding = tokio::spawn(hold(client, name, limits, watched));
        let (unit, runtime, first) = timeout(LONG, told.recv()).await.unwrap().unwrap();
        assert_eq!((unit.as_str(), runtime), ("volant-vm@web.service", true));
        assert_eq!(first["CPUQuotaPerSecUSec"], 500_000);
        assert!(first["MemoryMax"] > (256 + 256) << 20);
        // What else changes is none of systemd's matter.
        live.send_modify(|live| live.phase = "running");
        live.send_modify(|live| live.memory_mb = 512);
        let (.., second) = timeout(LONG, told.recv()).await.unwrap().unwrap();
        assert_eq!(second["MemoryMax"] - first["MemoryMax"], 257 << 20);
        drop(live);
        timeout(LONG, holding).await.unwrap().unwrap();
        assert!(told.try_recv().is_err());
    }
}
