//! One start of `volant-vm@NAME.service`, in its order: what the host gives, then the VM's own identity for good, then the
//! VMM, and only then a guest.

mod around;

pub(crate) use around::{Around, RunDir};

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use volant_dbus::vm;
use volant_spec::{
    Config, Name,
    config::{ConfigError, VmDefaults},
};
use zbus::Connection;

use crate::{
    agent::{ListenError, Token, TokenError},
    console::Hub,
    dbus::{self, Vm},
    definition::{Definition, Kernel},
    devices::{self, DevicesError},
    disks,
    ended::{EXIT_UNAVAILABLE, EXIT_UNDEFINED, EXIT_UNPREPARED, Ended},
    grpc::{Parked, Serving},
    handle::Handle,
    happening::Happening,
    hypervisor::{MachineSpec, Nic, detect, kernel_image},
    identity::{self, Identity, IdentityError},
    journal::Journal,
    life::{Rung, Times},
    live::Live,
    logs::{Labels, Limits, Logs},
    machine,
    prepare::{PrepareError, Prepared, prepare},
    reload::{DocumentError, Estate, Leaver, bus::Bus},
    secrets::{self, SecretsError},
    sockets::{self, Sockets, SocketsError},
    supervise, systemd,
};

/// What happened and is on its way to the bus.
pub(crate) const HAPPENINGS: usize = 64;
/// Who wants to take over; they come one by one.
pub(crate) const HANDOVERS: usize = 1;

/// What vmd is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: Name,
    pub config: PathBuf,
    /// Private to this unit; the VM's own folder is made below it.
    pub run_dir: PathBuf,
    /// Where the host's sockets are, each VM's in a folder of its own.
    pub socket_dir: PathBuf,
}

/// Why no VM was started.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("cannot {act} the system bus")]
    Bus {
        act: &'static str,
        source: zbus::Error,
    },
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error("cannot take the VM's own identity")]
    Identity(#[from] IdentityError),
    #[error("cannot open the {what} {}, which the package volant-kernel has", path.display())]
    OpenBoot {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Kernel(#[from] kernel_image::KernelImageError),
    #[error(transparent)]
    Vmm(#[from] detect::DetectError),
    #[error("cannot make the folder {}", path.display())]
    RunDir { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Share(#[from] disks::ShareError),
    #[error("VM '{name}' is to have the host's devices {}, and does not get them", addresses.join(", "))]
    Devices {
        name: Name,
        addresses: Vec<String>,
        source: Box<DevicesError>,
    },
    #[error("cannot add the file system tools to the initramfs")]
    Tools(#[source] io::Error),
    #[error("cannot reach the journal")]
    Journal(#[source] io::Error),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    #[error("cannot serve clients")]
    Serve(#[source] io::Error),
    #[error("cannot tell where this program is")]
    Program(#[source] io::Error),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("cannot take the VM over")]
    TakeOver(#[source] io::Error),
}

impl UnitError {
    /// What vmd exits with; see [`crate::ended`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::OpenBoot { .. }
            | Self::Kernel(_)
            | Self::Share(_)
            | Self::Secrets(
                SecretsError::Missing(_) | SecretsError::TooLarge | SecretsError::Name(_),
            )
            | Self::Identity(IdentityError::Reserved(_)) => EXIT_UNDEFINED,
            Self::Vmm(_) => EXIT_UNAVAILABLE,
            Self::Devices { source, .. } => source.exit_code(),
            Self::Prepare(error) => error.exit_code(),
            Self::Signals(_)
            | Self::Secrets(SecretsError::Read { .. })
            | Self::Bus { .. }
            | Self::Identity(_)
            | Self::RunDir { .. }
            | Self::Tools(_)
            | Self::Journal(_)
            | Self::Token(_)
            | Self::Sockets(_)
            | Self::Serve(_)
            | Self::Program(_)
            | Self::Document(_)
            | Self::TakeOver(_)
            | Self::Listen(_) => EXIT_UNPREPARED,
        }
    }
}

/// Runs a VM from the start of its unit to its end.
///
/// # Errors
/// Nothing was started, and why.
pub async fn run(settings: &Settings) -> Result<Ended, UnitError> {
    let stop = volant_service::shutdown().map_err(UnitError::Signals)?;
    tokio::pin!(stop);
    let config = Config::load(&settings.config)?;
    volant_service::status("starting: asking for the definition and a network");
    // Before an upgrade can put another one there, and while this process may still read where it is.
    let program = std::env::current_exe().map_err(UnitError::Program)?;
    let asked = async {
        let bus = Bus::connect().await.map_err(|source| UnitError::Bus {
            act: "reach",
            source,
        })?;
        let (prepared, facts) = tokio::join!(
            prepare(&settings.name, &bus.connection),
            systemd::look(&bus.connection, &settings.name)
        );
        let prepared = prepared?;
        if !prepared.definition.devices.is_empty() {
            lend(&bus.connection, &prepared.definition, facts.is_some()).await?;
        }
        Ok::<_, UnitError>((bus, prepared, facts))
    };
    let (bus, prepared, facts) = tokio::select! {
        asked = asked => asked?,
        _ = &mut stop => return Ok(Ended::Stopped(Rung::Kill)),
    };
    let Prepared {
        definition,
        initramfs,
        rootfs,
        kernel,
        disks,
        attachment,
        tap,
    } = prepared;
    let (live, watched) = watch::channel(Live::new(&definition, &attachment));
    let token = Token::random()?;
    let vsock = settings
        .run_dir
        .join(definition.name.as_str())
        .join("vsock");
    let (handle, asks) = Handle::new(watched, vsock, token.clone());
    let (events, happenings) = mpsc::channel(HAPPENINGS);
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let secrets = secrets::read(credentials.as_deref(), &definition.secrets)?;
    let announcer = publish(&bus.connection, &definition.name, &handle, happenings).await?;

    let sockets = Sockets::make(&sockets::folder(&settings.socket_dir, &definition.name))?;

    // From here on this process has no right that its VM may not have.
    match identity::become_vm(definition.uid)? {
        Identity::Switched => tracing::debug!("this process is user {} now", definition.uid),
        Identity::Kept => tracing::info!("run by hand: the VM keeps this process's user"),
    }
    let kernel = open_kernel(kernel, definition.kernel, &config.vm)?;
    let initramfs = match (initramfs, definition.kernel) {
        (Some(own), _) => Some(own),
        (None, Kernel::BzImage) => None,
        (None, Kernel::Vmlinux | Kernel::Own) => {
            Some(open("boot initramfs", &config.vm.initramfs)?.into())
        }
    };
    let mut disks = disks;
    disks.allow(&config.vm)?;
    let initramfs = if disks.need_tools() {
        let tools = open("file system tools", &config.vm.tools)?;
        let both = disks::with_tools(initramfs, tools).map_err(UnitError::Tools)?;
        Some(both)
    } else {
        initramfs
    };
    let choice = detect::choose(definition.vmm, &detect::Facts::gather())?;
    tracing::info!("{}", choice.reason);
    let (accel, reason) = (choice.accel, choice.reason.clone());
    let hypervisor = choice.clone().hypervisor();
    live.send_modify(|live| {
        live.vmm = hypervisor.name().to_owned();
        live.vmm_short = format!("{} ({})", hypervisor.name(), accel.as_str());
        live.vmm_reason = reason;
    });
    let folder = RunDir::make(&settings.run_dir, &definition.name)?;
    let (logs, writer) = Logs::open(
        Journal::open().map_err(UnitError::Journal)?,
        labels(&definition),
        Limits::default(),
    );
    let mut run_config = definition.run_config(&attachment);
    run_config.secrets = secrets;
    disks.tell(&mut run_config);
    let stop_timeout = systemd::stop_timeout(facts.as_ref());
    let times = times(&config.vm, &definition, stop_timeout);
    // While the guest boots: nothing waits for it.
    let limits = facts.map(|facts| {
        let told = machine::announce(
            bus.connection.clone(),
            definition.name.clone(),
            handle.live(),
        );
        tokio::spawn(told);
        let limits = systemd::Limits {
            facts,
            share: definition.share,
            vmm: hypervisor.name(),
            accel,
        };
        let (bus, name) = (bus.connection.clone(), definition.name.clone());
        let held = systemd::hold(bus, name, limits, handle.live());
        tokio::spawn(held)
    });
    let console = Hub::default();
    let parked = Parked::default();
    let clients = sockets.clients.try_clone().map_err(UnitError::Serve)?;
    let serving = Serving::start(clients, handle.clone(), console.clone(), parked.clone())
        .map_err(UnitError::Serve)?;
    let (handovers, wanted) = mpsc::channel(HANDOVERS);
    let leaver = Leaver::new(
        Estate {
            settings: settings.clone(),
            program,
            labels: labels(&definition),
            choice,
            share: definition.share,
            bus,
            clients: sockets.clients,
            control: sockets.control,
            console: console.clone(),
            parked,
        },
        handovers,
    );
    let vm = supervise::Vm {
        run_config,
        token,
        times,
        asks,
        events,
        spec: MachineSpec {
            name: definition.name,
            uuid: definition.uuid,
            resources: definition.resources,
            kernel: kernel.into(),
            initramfs,
            rootfs,
            disks: disks.specs,
            shares: disks.shares,
            devices: definition.devices,
            nic: Some(Nic {
                tap,
                mac: attachment.mac,
            }),
            cid: attachment.cid,
            run_dir: folder.0.clone(),
            vsock: handle.vsock().to_owned(),
        },
        hypervisor: Arc::from(hypervisor),
        logs,
        console: console.clone(),
        live,
    };
    let supervised = supervise::run_until_taken(vm, stop, wanted);
    let around = Around {
        _folder: folder,
        serving,
        console,
        writer,
        announcer,
        limits,
        leaver,
    };
    around.until_end(supervised).await
}

fn times(config: &VmDefaults, definition: &Definition, stop: Option<Duration>) -> Times {
    let boot = config.boot_timeout_sec.duration();
    let times = Times::new(boot, definition.ready_within, definition.stop_grace, stop);
    if times.grace < definition.stop_grace {
        tracing::warn!(
            "a stop of this unit leaves the workload {} s of the {} s that it may take: give the unit a longer TimeoutStopSec=",
            times.grace.as_secs(),
            definition.stop_grace.as_secs()
        );
    }
    times
}

/// Has the host lend the VM its devices, before this process gives up what it may ask for it with.
async fn lend(bus: &Connection, definition: &Definition, is_unit: bool) -> Result<(), UnitError> {
    volant_service::status("starting: asking for the host's devices");
    let lent = match is_unit {
        true => devices::lend(bus, &definition.name).await,
        // The unit that lends them would start the VM's.
        false => Err(DevicesError::NoUnit),
    };
    lent.map_err(|source| UnitError::Devices {
        name: definition.name.clone(),
        addresses: definition.devices.clone(),
        source: Box::new(source),
    })
}

/// Puts the VM on the bus: the object first, its name last. The task tells what changes there until the VM ended.
async fn publish(
    bus: &Connection,
    name: &Name,
    handle: &Handle,
    happenings: mpsc::Receiver<Happening>,
) -> Result<JoinHandle<()>, UnitError> {
    let serve = async {
        let object = Vm::new(handle.clone());
        bus.object_server().at(vm::PATH, object).await?;
        bus.request_name(vm::bus_name(name.as_str())).await
    };
    serve.await.map_err(|source| UnitError::Bus {
        act: "own the VM's name on",
        source,
    })?;
    Ok(announce(bus, handle, happenings))
}

/// Tells the bus what changes from now on.
pub(crate) fn announce(
    bus: &Connection,
    handle: &Handle,
    happenings: mpsc::Receiver<Happening>,
) -> JoinHandle<()> {
    let announced = dbus::announce(bus.clone(), handle.live(), happenings);
    tokio::spawn(async move {
        if let Err(error) = announced.await {
            tracing::warn!("cannot tell the bus what changed: {error}");
        }
    })
}

/// The plugin's `own` kernel, or the one of the host that was chosen.
fn open_kernel(
    own: Option<OwnedFd>,
    chosen: Kernel,
    config: &VmDefaults,
) -> Result<File, UnitError> {
    let path = match chosen {
        Kernel::BzImage => config.bzimage.as_path(),
        Kernel::Vmlinux | Kernel::Own => config.kernel.as_path(),
    };
    let (kernel, path) = match own {
        Some(own) => (own.into(), Path::new("of the plugin")),
        None => (open("kernel", path)?, path),
    };
    kernel_image::check(&kernel, path)?;
    Ok(kernel)
}

fn open(what: &'static str, path: &Path) -> Result<File, UnitError> {
    File::open(path).map_err(|source| UnitError::OpenBoot {
        what,
        path: path.to_owned(),
        source,
    })
}

fn labels(definition: &Definition) -> Labels {
    Labels {
        vm: definition.name.to_string(),
        uuid: definition.uuid.clone(),
        workload: definition.program().to_owned(),
    }
}
