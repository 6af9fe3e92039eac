//! What a unit's control group uses, by systemd's word.

use serde::Serialize;
use zbus::proxy::CacheProperties;

use super::{Systemd, SystemdError, proxies::ServiceProxy, refused};

/// The calls that one look makes at once.
const LOOK: u32 = 6;

/// What a unit uses; a number that systemd does not know is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub memory_bytes: Option<u64>,
    /// Absent: no limit.
    pub memory_max_bytes: Option<u64>,
    pub cpu_ns: Option<u64>,
    pub tasks: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_write_bytes: Option<u64>,
}

impl Systemd {
    /// What a unit's control group uses now.
    ///
    /// # Errors
    /// systemd is gone.
    pub async fn usage(&self, unit: &str) -> Result<Usage, SystemdError> {
        let looked = async {
            let room = self.room(1).await;
            let path = self.manager.load_unit(unit).await?;
            drop(room);
            let _room = self.room(LOOK).await;
            let service = ServiceProxy::builder(&self.bus)
                .path(path)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let (memory, max, cpu, tasks, read, written) = futures_util::try_join!(
                service.memory_current(),
                service.memory_max(),
                service.cpu_usage_nsec(),
                service.tasks_current(),
                service.io_read_bytes(),
                service.io_write_bytes()
            )?;
            Ok(Usage {
                memory_bytes: known(memory),
                memory_max_bytes: known(max),
                cpu_ns: known(cpu),
                tasks: known(tasks),
                io_read_bytes: known(read),
                io_write_bytes: known(written),
            })
        };
        looked
            .await
            .map_err(|error: zbus::Error| refused("look at", unit, error))
    }
}

/// systemd's word for "not known", and for "no limit".
fn known(number: u64) -> Option<u64> {
    (number != u64::MAX).then_some(number)
}
