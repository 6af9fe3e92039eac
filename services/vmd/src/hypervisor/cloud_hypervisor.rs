//! Cloud Hypervisor: one process per VM, told over its REST API what to run.
//!
//! It gets kernel, initramfs, root, API socket and event pipe as open descriptors, and the tap with `vm.add-net`. It makes
//! the serial console's and the vsock's sockets in the run folder, and opens `/dev/kvm` and `/dev/urandom`.

mod api;
mod config;
mod events;

use std::{
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    net::{UnixStream, unix::pipe},
    task::JoinHandle,
    time::timeout,
};
use volant_service::{Heirlooms, inherit, inherited};
use volant_spec::Resources;

use self::{
    api::{Api, ApiError},
    config::{Plan, machine, network_card, resize, room},
    events::Event,
};
use super::{
    Control, ControlError, Hypervisor, LaunchError, Machine, MachineSpec, ResizeError, VmmExit,
    frames::Frames,
    process::{Exit, Process, ProcessState},
    remove,
    saved::ControlState,
    share::{ShareState, Shares},
};

const PROGRAM: &str = "cloud-hypervisor";
const HINT: &str = "put version 52 or newer into /usr/local/bin, or choose vmm = \"qemu\"";

/// Sockets in the run folder.
const API_SOCKET: &str = "cloud-hypervisor.sock";
const SERIAL_SOCKET: &str = "serial.sock";

/// On a host that starts many machines at once, seconds go by.
const START_DEADLINE: Duration = Duration::from_secs(30);
const COMMAND_DEADLINE: Duration = Duration::from_secs(2);

/// The driver.
#[derive(Debug)]
pub struct CloudHypervisor {
    program: PathBuf,
}

impl CloudHypervisor {
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    fn start(&self, spec: MachineSpec) -> Result<(CloudHypervisorControl, Order), LaunchError> {
        let prepare = |what| move |source| LaunchError::Prepare { what, source };
        let shares = Shares::start(&spec)?;
        let api_socket = spec.run_dir.join(API_SOCKET);
        let serial = spec.run_dir.join(SERIAL_SOCKET);
        for stale in [&api_socket, &serial, &spec.vsock] {
            remove(stale).map_err(prepare("the VMM's sockets"))?;
        }
        // Listened on before the start: a request waits for its answer, not for the socket.
        let listener = UnixListener::bind(&api_socket).map_err(prepare("the VMM's API socket"))?;
        let (events, events_end) = io::pipe().map_err(prepare("the VMM's event pipe"))?;
        let events = pipe::Receiver::from_owned_fd(events.into())
            .map_err(prepare("the VMM's event pipe"))?;

        let mut command = Command::new(&self.program);
        let listener = inherit(&mut command, listener.into());
        let events_end = inherit(&mut command, events_end.into());
        command.args(["--api-socket", &format!("fd={listener}")]);
        command.args(["--event-monitor", &format!("fd={events_end}")]);
        // Else a power-off and a failed processor end it alike: with code 0 and the same events.
        command.arg("--no-shutdown");
        let disks: Vec<_> = spec
            .disks
            .into_iter()
            .map(|disk| {
                let file = inherit(&mut command, disk.file);
                (disk.serial, file, disk.is_read_only)
            })
            .collect();
        let room = room(spec.resources);
        let machine = machine(&Plan {
            uuid: &spec.uuid,
            resources: spec.resources,
            room,
            kernel: inherit(&mut command, spec.kernel),
            initramfs: spec
                .initramfs
                .map(|initramfs| inherit(&mut command, initramfs)),
            rootfs: spec.rootfs.map(|rootfs| inherit(&mut command, rootfs)),
            disks: disks
                .iter()
                .map(|(serial, file, is_read_only)| (serial.as_str(), *file, *is_read_only))
                .collect(),
            shares: shares
                .0
                .iter()
                .map(|share| (share.tag.as_str(), share.socket.as_path()))
                .collect(),
            devices: &spec.devices,
            serial: &serial,
            cid: spec.cid,
            vsock: &spec.vsock,
        });
        let control = CloudHypervisorControl {
            process: Process::start(PROGRAM, HINT, command)?,
            shares,
            sockets: [api_socket.clone(), serial.clone(), spec.vsock],
            api: Api::new(api_socket),
            events: Some(Frames::new(events, events::MARK)),
            farewell: None,
            is_paused: false,
            boot: spec.resources,
            room,
            ended: None,
        };
        let nic = spec.nic.map(|nic| (network_card(&nic.mac), nic.tap));
        Ok((
            control,
            Order {
                machine,
                nic,
                serial,
            },
        ))
    }
}

/// What a started Cloud Hypervisor is told.
#[derive(Debug)]
struct Order {
    machine: Value,
    nic: Option<(Value, OwnedFd)>,
    serial: PathBuf,
}

#[async_trait]
impl Hypervisor for CloudHypervisor {
    fn name(&self) -> &'static str {
        PROGRAM
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Machine, LaunchError> {
        let (mut control, order) = self.start(spec)?;
        match control.boot(order).await {
            Ok(console) => Ok(Machine {
                pid: control.process.pid(),
                console,
                control: Box::new(control),
            }),
            Err(error) => {
                control.kill().await;
                Err(error)
            }
        }
    }
}

/// A running Cloud Hypervisor.
#[derive(Debug)]
struct CloudHypervisorControl {
    process: Process,
    shares: Shares,
    /// Removed at the end.
    sockets: [PathBuf; 3],
    api: Api,
    /// Absent once closed.
    events: Option<Frames<pipe::Receiver>>,
    /// Under way once the machine is gone: whether the process went on and ended because it was asked to.
    farewell: Option<JoinHandle<bool>>,
    /// It refuses to pause what is paused, and to resume what runs.
    is_paused: bool,
    boot: Resources,
    /// Up to what the machine can grow.
    room: Resources,
    ended: Option<VmmExit>,
}

/// The same for the supervisor that takes over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CloudHypervisorState {
    process: ProcessState,
    shares: Vec<ShareState>,
    sockets: [PathBuf; 3],
    api: PathBuf,
    events: Option<(RawFd, Vec<u8>)>,
    is_paused: bool,
    boot: Resources,
    room: Resources,
}

/// What an earlier supervisor left.
pub(super) fn restore(state: CloudHypervisorState) -> io::Result<Box<dyn Control>> {
    let events = match state.events {
        Some((events, rest)) => {
            let events = pipe::Receiver::from_owned_fd(inherited(events)?)?;
            Some(Frames::with_rest(events, events::MARK, rest))
        }
        None => None,
    };
    Ok(Box::new(CloudHypervisorControl {
        process: Process::restore(PROGRAM, state.process)?,
        shares: Shares::restore(state.shares)?,
        sockets: state.sockets,
        api: Api::new(state.api),
        events,
        farewell: None,
        is_paused: state.is_paused,
        boot: state.boot,
        room: state.room,
        ended: None,
    }))
}

impl CloudHypervisorControl {
    async fn boot(&mut self, order: Order) -> Result<UnixStream, LaunchError> {
        self.order("vm.create", Some(order.machine), None).await?;
        if let Some((card, tap)) = order.nic {
            self.order("vm.add-net", Some(card), Some(tap)).await?;
        }
        // Before the boot, so that the console's first byte is not missed.
        let console = connect(&order.serial).map_err(|source| LaunchError::Prepare {
            what: "the connection to the serial console",
            source,
        })?;
        self.order("vm.boot", None, None).await?;
        Ok(console)
    }

    /// Has an act carried out that a launch needs.
    async fn order(
        &mut self,
        act: &'static str,
        body: Option<Value>,
        fd: Option<OwnedFd>,
    ) -> Result<(), LaunchError> {
        let asked = tokio::select! {
            biased;
            asked = self.api.put(act, body, fd, START_DEADLINE) => asked,
            exit = self.process.wait() => return Err(self.process.ended(exit)),
        };
        match asked {
            Ok(()) => Ok(()),
            Err(ApiError::Refused { status, body }) => Err(LaunchError::Refused {
                program: PROGRAM,
                act,
                message: format!("status {status}: {body}"),
            }),
            Err(ApiError::Timeout(deadline)) => Err(LaunchError::Timeout {
                program: PROGRAM,
                seconds: deadline.as_secs(),
                message: self.process.said(),
            }),
            // A broken connection is mostly the end of the process, which is what should be told.
            Err(error) => match timeout(COMMAND_DEADLINE, self.process.wait()).await {
                Ok(exit) => Err(self.process.ended(exit)),
                Err(_) => Err(LaunchError::Refused {
                    program: PROGRAM,
                    act,
                    message: error.to_string(),
                }),
            },
        }
    }

    async fn act(
        &self,
        request: &str,
        body: Option<Value>,
        act: &'static str,
    ) -> Result<(), ControlError> {
        let asked = self.api.put(request, body, None, COMMAND_DEADLINE).await;
        asked.map_err(|error| ControlError {
            program: PROGRAM,
            act,
            message: error.to_string(),
        })
    }

    /// The next event that matters; pends once there are no more. May be dropped and called again.
    async fn event(events: &mut Option<Frames<pipe::Receiver>>) -> Event {
        while let Some(frames) = events {
            match frames.next().await {
                Ok(Some(message)) => match events::parse(&message) {
                    Event::Other => {}
                    event => return event,
                },
                Ok(None) | Err(_) => *events = None,
            }
        }
        std::future::pending().await
    }

    /// Asks the process to end, whose machine is gone. It answers if the guest powered off, and is on its way out by
    /// itself if something failed.
    fn say_farewell(&mut self) {
        let api = self.api.clone();
        self.farewell.get_or_insert_with(|| {
            tokio::spawn(async move {
                let asked = api.put("vmm.shutdown", None, None, COMMAND_DEADLINE);
                asked.await.is_ok()
            })
        });
    }

    async fn end(&mut self, exit: Exit) -> VmmExit {
        let asked = match &mut self.farewell {
            Some(farewell) => farewell.await.unwrap_or(false),
            None => false,
        };
        if asked {
            VmmExit::GuestPowerOff
        } else {
            self.process.exit(exit)
        }
    }
}

#[async_trait]
impl Control for CloudHypervisorControl {
    async fn press_power_button(&mut self) -> Result<(), ControlError> {
        self.act("vm.power-button", None, "press the power button")
            .await
    }

    async fn pause(&mut self) -> Result<(), ControlError> {
        if self.is_paused {
            return Ok(());
        }
        self.act("vm.pause", None, "pause the guest").await?;
        self.is_paused = true;
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), ControlError> {
        if !self.is_paused {
            return Ok(());
        }
        self.act("vm.resume", None, "resume the guest").await?;
        self.is_paused = false;
        Ok(())
    }

    async fn resize(&mut self, from: Resources, to: Resources) -> Result<(), ResizeError> {
        let wanted = resize(self.boot, from, to, self.room).map_err(ResizeError::Unsupported)?;
        let act = "resize the machine";
        Ok(self.act("vm.resize", Some(wanted), act).await?)
    }

    async fn wait(&mut self) -> VmmExit {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let ended = loop {
            tokio::select! {
                biased;
                event = Self::event(&mut self.events) => match event {
                    Event::Rebooting => break VmmExit::GuestReset,
                    Event::Shutdown => self.say_farewell(),
                    Event::Other => {}
                },
                exit = self.process.wait() => break self.end(exit).await,
                // A virtiofsd ends with its VMM, and may be seen first.
                ended = self.shares.wait() => match timeout(COMMAND_DEADLINE, self.process.wait()).await {
                    Ok(exit) => break self.end(exit).await,
                    Err(_) => break ended,
                },
            }
        };
        self.ended = Some(ended.clone());
        self.kill().await;
        ended
    }

    fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<Option<ControlState>> {
        let process = self.process.save(heirlooms)?;
        let shares = self.shares.save(heirlooms)?;
        let (Some(process), Some(shares), None, None) =
            (process, shares, &self.farewell, &self.ended)
        else {
            return Ok(None);
        };
        let events = match &self.events {
            Some(frames) => Some((heirlooms.keep(frames.get_ref())?, frames.rest().to_vec())),
            None => None,
        };
        Ok(Some(ControlState::cloud_hypervisor(CloudHypervisorState {
            process,
            shares,
            sockets: self.sockets.clone(),
            api: self.api.socket().to_owned(),
            events,
            is_paused: self.is_paused,
            boot: self.boot,
            room: self.room,
        })))
    }

    async fn kill(&mut self) {
        self.process.kill().await;
        self.shares.kill().await;
        for socket in &self.sockets {
            if let Err(error) = remove(socket) {
                tracing::warn!("cannot remove {}: {error}", socket.display());
            }
        }
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = StdUnixStream::connect(socket)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
