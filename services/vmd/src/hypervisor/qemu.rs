//! QEMU's `microvm` machine, with vhost-device-vsock as its vsock.
//!
//! QEMU gets all that it talks to as open descriptors: console, monitor, tap, kernel, initramfs, root and the
//! connection to vhost-device-vsock. It opens nothing by a name but `/dev/kvm`.

mod arguments;
mod vsock;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use async_trait::async_trait;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};
use volant_service::{Heirlooms, TscSample, inherit};
use volant_spec::Resources;

use self::{
    arguments::{Disk, Plan, arguments},
    vsock::{Vsock, VsockState},
};
use super::{
    Control, ControlError, Hypervisor, LaunchError, Machine, MachineSpec, ResizeError, VmmExit,
    detect::Accel,
    process::{Exit, Process, ProcessState},
    qmp::{Qmp, QmpError, QmpState, Shutdown},
    saved::ControlState,
    share::{ShareState, Shares},
};

const QEMU: &str = "qemu-system-x86_64";
const QEMU_HINT: &str = "install the package qemu-system-x86";

/// On a host that starts many machines at once, seconds go by.
const START_DEADLINE: Duration = Duration::from_secs(30);
const COMMAND_DEADLINE: Duration = Duration::from_secs(2);
/// An ended QEMU's monitor has nothing more to say, unless another process holds it.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How far apart the two looks at the time stamp counter must be.
const TSC_SPAN: Duration = Duration::from_millis(10);

/// The driver.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    vsock: PathBuf,
    accel: Accel,
    /// Taken early, so that a launch need not wait for a long enough span.
    tsc: TscSample,
}

impl Qemu {
    /// `program` is QEMU, `vsock` is vhost-device-vsock.
    #[must_use]
    pub fn new(program: PathBuf, vsock: PathBuf, accel: Accel) -> Self {
        Self {
            program,
            vsock,
            accel,
            tsc: TscSample::take(),
        }
    }

    /// What an emulated guest must know; under KVM the hypervisor tells it.
    async fn tsc_khz(&self) -> Option<u64> {
        if self.accel == Accel::Kvm {
            return None;
        }
        sleep(TSC_SPAN.saturating_sub(self.tsc.taken_at().elapsed())).await;
        self.tsc.khz_until(&TscSample::take())
    }

    /// Starts QEMU; its console and its monitor come along.
    async fn start(
        &self,
        spec: MachineSpec,
        vsock: OwnedFd,
        shares: &mut Shares,
    ) -> Result<(Process, UnixStream, UnixStream), LaunchError> {
        let tsc_khz = self.tsc_khz().await;
        let (console, console_end) = pair("the console")?;
        let (monitor, monitor_end) = pair("the monitor")?;
        let mut command = Command::new(&self.program);
        let nic = spec
            .nic
            .map(|nic| (inherit(&mut command, nic.tap), nic.mac));
        let disks: Vec<_> = spec
            .disks
            .into_iter()
            .map(|disk| {
                let file = inherit(&mut command, disk.file);
                (disk.serial, file, disk.is_read_only)
            })
            .collect();
        let mut connected = Vec::new();
        for share in &mut shares.0 {
            let connection = inherit(&mut command, share.connect().await?);
            connected.push((share.tag.as_str(), connection));
        }
        let plan = Plan {
            name: &spec.name,
            uuid: &spec.uuid,
            resources: spec.resources,
            accel: self.accel,
            tsc_khz,
            kernel: inherit(&mut command, spec.kernel),
            initramfs: spec
                .initramfs
                .map(|initramfs| inherit(&mut command, initramfs)),
            rootfs: spec.rootfs.map(|rootfs| inherit(&mut command, rootfs)),
            disks: disks
                .iter()
                .map(|(serial, file, is_read_only)| Disk {
                    serial,
                    file: *file,
                    is_read_only: *is_read_only,
                })
                .collect(),
            shares: connected
                .iter()
                .map(|(tag, connection)| arguments::Share {
                    tag,
                    connection: *connection,
                })
                .collect(),
            devices: &spec.devices,
            console: inherit(&mut command, console_end),
            monitor: inherit(&mut command, monitor_end),
            vsock: inherit(&mut command, vsock),
            nic: nic.as_ref().map(|(tap, mac)| (*tap, mac.as_str())),
        };
        command.args(arguments(&plan));
        Ok((Process::start(QEMU, QEMU_HINT, command)?, console, monitor))
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Machine, LaunchError> {
        let mut shares = Shares::start(&spec)?;
        let mut vsock = Vsock::start(&self.vsock, &spec)?;
        let started = match vsock.connect().await {
            Ok(connection) => self.start(spec, connection, &mut shares).await,
            Err(error) => Err(error),
        };
        let (qemu, console, monitor) = match started {
            Ok(started) => started,
            Err(error) => {
                vsock.kill().await;
                shares.kill().await;
                return Err(error);
            }
        };
        let pid = qemu.pid();
        let mut control = QemuControl {
            qemu,
            vsock,
            shares,
            qmp: Qmp::new(monitor),
            ended: None,
        };
        if let Err(error) = control.greet().await {
            control.kill().await;
            return Err(error);
        }
        Ok(Machine {
            pid,
            console,
            control: Box::new(control),
        })
    }
}

/// A running QEMU and its vhost-device-vsock.
#[derive(Debug)]
struct QemuControl {
    qemu: Process,
    vsock: Vsock,
    shares: Shares,
    qmp: Qmp,
    ended: Option<VmmExit>,
}

/// The same for the supervisor that takes over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QemuState {
    qemu: ProcessState,
    vsock: VsockState,
    shares: Vec<ShareState>,
    qmp: QmpState,
}

/// What an earlier supervisor left.
pub(super) fn restore(state: QemuState) -> io::Result<Box<dyn Control>> {
    Ok(Box::new(QemuControl {
        qemu: Process::restore(QEMU, state.qemu)?,
        vsock: Vsock::restore(state.vsock)?,
        shares: Shares::restore(state.shares)?,
        qmp: Qmp::restore(state.qmp)?,
        ended: None,
    }))
}

impl QemuControl {
    /// Waits for the built machine.
    async fn greet(&mut self) -> Result<(), LaunchError> {
        let Self {
            qemu, vsock, qmp, ..
        } = self;
        let answer = tokio::select! {
            biased;
            answer = timeout(START_DEADLINE, qmp.greet()) => answer,
            exit = vsock.process.wait() => return Err(vsock.process.ended(exit)),
        };
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(QmpError::Refused(message))) => Err(LaunchError::Refused {
                program: QEMU,
                act: "its monitor's first command",
                message,
            }),
            // The monitor closes when QEMU ends, which is what should be told.
            Ok(Err(_)) => match timeout(COMMAND_DEADLINE, qemu.wait()).await {
                Ok(exit) => Err(qemu.ended(exit)),
                Err(_) => Err(no_answer(qemu)),
            },
            Err(_) => Err(no_answer(qemu)),
        }
    }

    async fn command(&mut self, name: &str, act: &'static str) -> Result<(), ControlError> {
        let done = self.qmp.command(name, COMMAND_DEADLINE).await;
        done.map_err(|error| ControlError {
            program: QEMU,
            act,
            message: error.to_string(),
        })
    }

    async fn end_of_qemu(&mut self, exit: Exit) -> VmmExit {
        let _ = timeout(LAST_WORDS, self.qmp.closed()).await;
        match (exit, self.qmp.shutdown()) {
            (Exit::Code(0), Some(Shutdown::GuestPowerOff)) => VmmExit::GuestPowerOff,
            (Exit::Code(0), Some(Shutdown::GuestReset)) => VmmExit::GuestReset,
            _ => self.qemu.exit(exit),
        }
    }
}

impl QemuControl {
    /// Sends QEMU's process a signal. One that has ended gets none.
    fn signal(&self, signal: Signal, act: &'static str) -> Result<(), ControlError> {
        let failed = |errno: Errno| ControlError {
            program: self.qemu.program(),
            act,
            message: errno.to_string(),
        };
        // Its number is its own until `Process` has seen its end, and 0 after.
        match i32::try_from(self.qemu.pid()) {
            Ok(pid) if pid > 0 => kill(Pid::from_raw(pid), signal).map_err(failed),
            _ => Err(failed(Errno::ESRCH)),
        }
    }
}

#[async_trait]
impl Control for QemuControl {
    async fn press_power_button(&mut self) -> Result<(), ControlError> {
        self.command("system_powerdown", "press the power button")
            .await
    }

    async fn pause(&mut self) -> Result<(), ControlError> {
        // Not by QMP's `stop`, which stops the vhost-user devices too: vhost-device-vsock then loses, for good, what the host sends
        // or closes meanwhile. A process that stands still leaves the device at work; what comes waits in the guest's queues.
        self.signal(Signal::SIGSTOP, "pause the guest")
    }

    async fn resume(&mut self) -> Result<(), ControlError> {
        self.signal(Signal::SIGCONT, "resume the guest")
    }

    async fn resize(&mut self, _from: Resources, _to: Resources) -> Result<(), ResizeError> {
        Err(ResizeError::Unsupported(
            "QEMU's microvm machine has no slots for more CPUs or memory while it runs".to_owned(),
        ))
    }

    async fn wait(&mut self) -> VmmExit {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        // The monitor is read all the time: a full one would hold QEMU up.
        let listen = async {
            self.qmp.closed().await;
            std::future::pending::<()>().await;
        };
        let first = tokio::select! {
            biased;
            exit = self.qemu.wait() => Ok(exit),
            exit = self.vsock.process.wait() => Err(self.vsock.process.exit(exit)),
            ended = self.shares.wait() => Err(ended),
            () = listen => unreachable!("it never ends"),
        };
        let ended = match first {
            Ok(exit) => self.end_of_qemu(exit).await,
            // A virtiofsd ends with its QEMU, and may be seen first.
            Err(ended) => match timeout(LAST_WORDS, self.qemu.wait()).await {
                Ok(exit) => self.end_of_qemu(exit).await,
                Err(_) => ended,
            },
        };
        self.ended = Some(ended.clone());
        self.kill().await;
        ended
    }

    fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<Option<ControlState>> {
        let qemu = self.qemu.save(heirlooms)?;
        let vsock = self.vsock.save(heirlooms)?;
        let shares = self.shares.save(heirlooms)?;
        let (Some(qemu), Some(vsock), Some(shares), None) = (qemu, vsock, shares, &self.ended)
        else {
            return Ok(None);
        };
        Ok(Some(ControlState::qemu(QemuState {
            qemu,
            vsock,
            shares,
            qmp: self.qmp.save(heirlooms)?,
        })))
    }

    async fn kill(&mut self) {
        self.qemu.kill().await;
        self.vsock.kill().await;
        self.shares.kill().await;
    }
}

fn no_answer(process: &Process) -> LaunchError {
    LaunchError::Timeout {
        program: process.program(),
        seconds: START_DEADLINE.as_secs(),
        message: process.said(),
    }
}

/// A connected pair: our end, and the one that is passed on.
fn pair(what: &'static str) -> Result<(UnixStream, OwnedFd), LaunchError> {
    let make = || {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    };
    make().map_err(|source| LaunchError::Prepare { what, source })
}
