//! The vmd that takes over.

use std::{
    os::{
        fd::RawFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
};

use tokio::sync::{mpsc, watch};
use volant_service::inherited;

use super::{
    Document,
    bus::Bus,
    leave::{Estate, Leaver},
    programs,
    request::answer_done,
};
use crate::{
    console::Hub,
    dbus::Vm,
    ended::Ended,
    grpc::Serving,
    handle::Handle,
    journal::Journal,
    logs::{Limits, Logs},
    machine,
    session::Sessions,
    supervise, systemd,
    unit::{Around, HANDOVERS, HAPPENINGS, RunDir, Settings, UnitError, announce},
};

/// Goes on with the VM whose document was left under the number `document`, to its end.
///
/// # Errors
/// It cannot be taken over: it ends with this process.
pub async fn take_over(settings: &Settings, document: RawFd) -> Result<Ended, UnitError> {
    let stop = volant_service::shutdown().map_err(UnitError::Signals)?;
    supervise::release_signals().map_err(UnitError::Signals)?;
    let Document {
        version: _,
        program,
        labels,
        choice,
        share,
        bus,
        clients,
        control,
        answer,
        vm,
        console,
        programs,
        program_count,
    } = Document::left(document)?;
    let inherit = |number| inherited(number).map_err(UnitError::TakeOver);
    let answer = UnixStream::from(inherit(answer)?);
    let clients = UnixListener::from(inherit(clients)?);
    let control = UnixListener::from(inherit(control)?);
    let (restored, left) = vm.restore().map_err(UnitError::TakeOver)?;

    let folder = RunDir::existing(restored.spec.run_dir.clone());
    let (live, watched) = watch::channel(restored.live);
    let vsock = restored.spec.vsock.clone();
    let (handle, asks) = Handle::new(watched, vsock.clone(), restored.token.clone());
    let bus = Bus::restore(bus, Vm::new(handle.clone())).await;
    let bus = bus.map_err(|source| UnitError::Bus {
        act: "go on with",
        source,
    })?;
    let (events, happenings) = mpsc::channel(HAPPENINGS);
    let announcer = announce(&bus.connection, &handle, happenings);
    let (logs, writer) = Logs::open(
        Journal::open().map_err(UnitError::Journal)?,
        labels.clone(),
        Limits::default(),
    );
    let (accel, hypervisor) = (choice.accel, choice.clone().hypervisor());
    let (connection, name, vmm) = (
        bus.connection.clone(),
        settings.name.clone(),
        hypervisor.name(),
    );
    let watched = handle.live();
    let limits = tokio::spawn(async move {
        if let Some(facts) = systemd::look(&connection, &name).await {
            // It may not have been ready before. What is told already is told again.
            tokio::spawn(machine::announce(
                connection.clone(),
                name.clone(),
                watched.clone(),
            ));
            let limits = systemd::Limits {
                facts,
                share,
                vmm,
                accel,
            };
            systemd::hold(connection, name, limits, watched).await;
        }
    });
    let console = Hub::restore(console);
    let sessions = Sessions::new(vsock, restored.token.clone());
    let parked = programs::restore(programs, program_count, &sessions);
    let clients_copy = clients.try_clone().map_err(UnitError::Serve)?;
    let serving = Serving::start(
        clients_copy,
        handle.clone(),
        console.clone(),
        parked.clone(),
    )
    .map_err(UnitError::Serve)?;
    let (handovers, wanted) = mpsc::channel(HANDOVERS);
    let leaver = Leaver::new(
        Estate {
            settings: settings.clone(),
            program,
            labels,
            choice,
            share,
            bus,
            clients,
            control,
            console: console.clone(),
            parked,
        },
        handovers,
    );
    let vm = supervise::Vm {
        hypervisor: Arc::from(hypervisor),
        spec: restored.spec,
        run_config: restored.run_config,
        token: restored.token,
        times: restored.times,
        logs,
        console: console.clone(),
        live,
        asks,
        events,
    };
    let supervised = async {
        let supervised = supervise::go_on(vm, left, stop, wanted);
        answer_done(answer);
        supervised.await
    };
    let around = Around {
        _folder: folder,
        serving,
        console,
        writer,
        announcer,
        limits: Some(limits),
        leaver,
    };
    around.until_end(supervised).await
}
