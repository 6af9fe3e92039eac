//! The driver of Cloud Hypervisor against a fake that keeps the real one's contract: its arguments, its REST API, a
//! tap's descriptor that comes with `vm.add-net`, its serial socket, its events and how it ends.
//!
//! The fake is this test's own executable, started by a script as the driver starts the real one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    env,
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, IoSliceMut, PipeReader, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process,
    sync::OnceLock,
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, time::timeout};
use vmd::hypervisor::{
    CloudHypervisor, ControlState, Hypervisor, LaunchError, Machine, MachineSpec, Nic, ResizeError,
    VmmExit,
};
use volant_service::{Heirlooms, Sockets};
use volant_spec::Resources;

const DEADLINE: Duration = Duration::from_secs(20);
const EVENTS: &str = "FAKE_EVENTS";

// The test's side.

/// A script that becomes the fake. Made once, before anything is started: nobody executes what another still writes.
fn program() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("cloud-hypervisor");
        let test = env::current_exe().unwrap();
        // All descriptors keep their numbers, and those up to the listener's are told as systemd tells them.
        let text = format!(
            r#"#!/bin/bash
            [ "$1 $3 $5" = '--api-socket --event-monitor --no-shutdown' ] || exit 2
            api=${{2#fd=}}
            for ((fd = 3; fd < api; fd++)); do
                [ -e /proc/self/fd/$fd ] || eval "exec $fd</dev/null"
                names+=$fd:
            done
            export LISTEN_PID=$$ LISTEN_FDS=$((api - 2)) LISTEN_FDNAMES=${{names}}api {EVENTS}=${{4#fd=}}
            exec '{}' --exact the_fake_is_this_test --nocapture >/dev/null
            "#,
            test.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    });
    folder.path().join("cloud-hypervisor")
}

/// A machine whose kernel file tells the fake how its guest behaves.
fn spec(folder: &Path, guest: &str, nic: Option<Nic>) -> MachineSpec {
    let kernel = folder.join("kernel");
    fs::write(&kernel, guest).unwrap();
    MachineSpec {
        name: "web".parse().unwrap(),
        uuid: "0190b6a0-0000-7000-8000-000000000001".to_owned(),
        resources: Resources::new(2, 256).unwrap(),
        kernel: File::open(&kernel).unwrap().into(),
        initramfs: Some(File::open(&kernel).unwrap().into()),
        rootfs: None,
        disks: Vec::new(),
        shares: Vec::new(),
        devices: Vec::new(),
        nic,
        cid: 5,
        run_dir: folder.to_owned(),
        vsock: folder.join("vsock"),
    }
}

async fn launch(folder: &Path, guest: &str, nic: Option<Nic>) -> Result<Machine, LaunchError> {
    let driver = CloudHypervisor::new(program());
    timeout(DEADLINE, driver.launch(spec(folder, guest, nic)))
        .await
        .unwrap()
}

async fn end(machine: &mut Machine) -> VmmExit {
    timeout(DEADLINE, machine.control.wait()).await.unwrap()
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// What stands in for a tap: the far end shows that the fake got the near one.
fn nic() -> (Nic, PipeReader) {
    let (far, near) = io::pipe().unwrap();
    (
        Nic {
            tap: near.into(),
            mac: "52:54:00:00:00:02".to_owned(),
        },
        far,
    )
}

#[tokio::test]
async fn a_machine_boots_with_its_tap_and_its_power_button_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let (nic, far) = nic();
    let mut machine = launch(folder.path(), "waits", Some(nic)).await.unwrap();
    let mut card = String::new();
    BufReader::new(far).read_line(&mut card).unwrap();
    assert_eq!(card, "52:54:00:00:00:02\n");
    let mut first = [0; 10];
    timeout(DEADLINE, machine.console.read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&first, b"first byte");
    // Waiting may be dropped and begun again.
    assert!(
        timeout(Duration::from_millis(20), machine.control.wait())
            .await
            .is_err()
    );
    machine.control.press_power_button().await.unwrap();
    assert_eq!(end(&mut machine).await, VmmExit::GuestPowerOff);
    assert_eq!(end(&mut machine).await, VmmExit::GuestPowerOff);
    assert!(is_gone(machine.pid));
    let error = machine
        .control
        .press_power_button()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cloud-hypervisor did not press the power button: "),
        "{error}"
    );
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    left.retain(|name| name != "kernel");
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_ends_of_a_machine_are_told_apart() {
    let failed = VmmExit::Exited {
        program: "cloud-hypervisor",
        code: 0,
        message: "VCPU generated error".to_owned(),
    };
    let aborted = VmmExit::Killed {
        program: "cloud-hypervisor",
        signal: 6,
    };
    for (guest, expected) in [
        ("powers off", VmmExit::GuestPowerOff),
        ("resets", VmmExit::GuestReset),
        ("fails", failed),
        ("aborts", aborted),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = launch(folder.path(), guest, None).await.unwrap();
        assert_eq!(end(&mut machine).await, expected, "{guest}");
        assert!(is_gone(machine.pid), "{guest}");
    }
}

#[tokio::test]
async fn a_killed_machine_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = launch(folder.path(), "waits", None).await.unwrap();
    machine.control.kill().await;
    assert!(is_gone(machine.pid));
    let killed = VmmExit::Killed {
        program: "cloud-hypervisor",
        signal: 9,
    };
    assert_eq!(end(&mut machine).await, killed);
    machine.control.kill().await;
}

#[tokio::test]
async fn a_machine_pauses_goes_on_and_is_resized() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = launch(folder.path(), "waits", None).await.unwrap();
    let control = &mut machine.control;
    // The real one refuses to do again what is so already.
    for _ in 0..2 {
        control.pause().await.unwrap();
    }
    for _ in 0..2 {
        control.resume().await.unwrap();
    }
    let of = |cpus, memory| Resources::new(cpus, memory).unwrap();
    let boot = of(2, 256);
    control.resize(boot, of(4, 512)).await.unwrap();
    control.resize(of(4, 512), of(4, 256)).await.unwrap();
    for to in [of(9, 256), of(2, 128), of(2, 4096)] {
        let error = control.resize(boot, to).await.unwrap_err();
        assert!(matches!(error, ResizeError::Unsupported(_)), "{error}");
    }
    // What the machine itself does not allow is told, too.
    let error = control.resize(boot, of(3, 256)).await.unwrap_err();
    assert!(
        error.to_string().contains("did not resize the machine"),
        "{error}"
    );
    machine.control.kill().await;
}

#[tokio::test]
async fn a_machine_goes_on_with_who_takes_it_over() {
    let folder = tempfile::tempdir().unwrap();
    let machine = launch(folder.path(), "waits", None).await.unwrap();
    let Machine {
        pid, mut control, ..
    } = machine;
    control.pause().await.unwrap();
    let mut heirlooms = Heirlooms::default();
    let state = control.save(&mut heirlooms).unwrap().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    // As by `execve`: nothing of the old one is dropped.
    std::mem::forget((control, heirlooms));
    let state: ControlState = serde_json::from_str(&text).unwrap();
    let mut control = state.restore().unwrap();
    assert!(!is_gone(pid));
    // It knows that the guest is paused: the real one refuses to pause it again.
    control.pause().await.unwrap();
    control.resume().await.unwrap();
    control.press_power_button().await.unwrap();
    let end = timeout(DEADLINE, control.wait()).await.unwrap();
    assert_eq!(end, VmmExit::GuestPowerOff);
    assert!(is_gone(pid));
    let ended = control.save(&mut Heirlooms::default()).unwrap();
    assert!(ended.is_none(), "an end is nobody's");
}

#[tokio::test]
async fn a_refusal_is_told_with_its_act_and_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let error = launch(folder.path(), "does not load", None)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "cloud-hypervisor refused vm.boot: status 500: [\"invalid kernel\"]"
    );
}

#[tokio::test]
async fn an_end_while_it_starts_is_told_with_the_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let error = launch(folder.path(), "dies at once", None)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "cloud-hypervisor ended while it started (code 1): out of luck"
    );
}

#[tokio::test]
async fn what_an_earlier_run_left_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    for socket in ["vsock", "serial.sock", "cloud-hypervisor.sock"] {
        UnixListener::bind(folder.path().join(socket)).unwrap();
    }
    let mut machine = launch(folder.path(), "powers off", None).await.unwrap();
    assert_eq!(end(&mut machine).await, VmmExit::GuestPowerOff);
}

#[tokio::test]
async fn an_absent_cloud_hypervisor_is_told_with_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let driver = CloudHypervisor::new(folder.path().join("nowhere"));
    let error = driver
        .launch(spec(folder.path(), "", None))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cloud-hypervisor is not installed; put version 52"),
        "{error}"
    );
}

// The fake's side.

/// Is the fake when a script says so, and does nothing else.
#[test]
fn the_fake_is_this_test() {
    if let Ok(events) = env::var(EVENTS) {
        let mut inherited = Sockets::inherit().unwrap();
        let listener = inherited.take("api").unwrap();
        let events = writer(events);
        Fake {
            events,
            config: Value::Null,
            serial: None,
            console: None,
            paused: false,
        }
        .serve(&UnixListener::from(listener));
    }
}

struct Fake {
    events: File,
    config: Value,
    serial: Option<UnixListener>,
    console: Option<UnixStream>,
    paused: bool,
}

type Answer = Result<(), (u16, &'static str)>;

#[allow(
    clippy::disallowed_methods,
    reason = "a process that stands in for another ends as it does"
)]
impl Fake {
    fn serve(mut self, api: &UnixListener) {
        for stream in api.incoming() {
            let mut stream = stream.unwrap();
            let (act, body, fd) = request(&stream);
            let answer = self.act(&act, &body, fd);
            let text = match answer {
                Ok(()) => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                Err((status, body)) => {
                    format!(
                        "HTTP/1.1 {status} No\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    )
                }
            };
            stream.write_all(text.as_bytes()).unwrap();
            match (act.as_str(), answer) {
                ("vmm.shutdown", Ok(())) => process::exit(0),
                ("vm.boot", Ok(())) => self.run(),
                _ => {}
            }
        }
    }

    fn act(&mut self, act: &str, body: &[u8], fd: Option<File>) -> Answer {
        let json = |body| serde_json::from_slice::<Value>(body).map_err(|_| (400, "no JSON"));
        match act {
            "vm.create" => {
                self.config = json(body)?;
                let socket = self
                    .config
                    .pointer("/serial/socket")
                    .and_then(Value::as_str);
                self.serial = Some(UnixListener::bind(socket.ok_or((400, "no serial"))?).unwrap());
                let vsock = self.config.pointer("/vsock/socket").and_then(Value::as_str);
                UnixListener::bind(vsock.ok_or((400, "no vsock"))?).unwrap();
                if self.guest() == "dies at once" {
                    eprintln!("out of luck");
                    process::exit(1);
                }
                Ok(())
            }
            "vm.add-net" => {
                let mac = json(body)?["mac"].as_str().unwrap_or_default().to_owned();
                let mut tap = fd.ok_or((400, "no tap came along"))?;
                writeln!(tap, "{mac}").unwrap();
                Ok(())
            }
            "vm.boot" if self.guest() == "does not load" => Err((500, "[\"invalid kernel\"]")),
            "vm.boot" => {
                let (mut console, _) = self
                    .serial
                    .as_ref()
                    .ok_or((404, "no machine"))?
                    .accept()
                    .unwrap();
                console.write_all(b"first byte").unwrap();
                self.console = Some(console);
                Ok(())
            }
            "vm.power-button" => {
                self.event("vm", "shutdown");
                Ok(())
            }
            "vm.pause" | "vm.resume" if self.paused == (act == "vm.pause") => {
                Err((500, "[\"invalid state transition\"]"))
            }
            "vm.pause" | "vm.resume" => {
                self.paused = act == "vm.pause";
                Ok(())
            }
            "vm.resize" => self.resize(&json(body)?),
            "vmm.shutdown" => Ok(()),
            _ => Err((404, "no such act")),
        }
    }

    /// As the real one, within what it was created with; and by itself it refuses three CPUs.
    fn resize(&self, wanted: &Value) -> Answer {
        let number = |pointer| self.config.pointer(pointer).and_then(Value::as_u64);
        let most = number("/cpus/max_vcpus").unwrap();
        let room = number("/memory/size").unwrap() + number("/memory/hotplug_size").unwrap();
        let (cpus, ram) = (&wanted["desired_vcpus"], &wanted["desired_ram"]);
        let fits = |value: &Value, most| value.as_u64().is_none_or(|value| value <= most);
        if cpus != 3 && fits(cpus, most) && fits(ram, room) && !(cpus.is_null() && ram.is_null()) {
            Ok(())
        } else {
            Err((500, "[\"invalid resize\"]"))
        }
    }

    /// The kernel's text, opened again by the name that the driver gave.
    fn guest(&self) -> String {
        let kernel = self
            .config
            .pointer("/payload/kernel")
            .and_then(Value::as_str)
            .unwrap();
        fs::read_to_string(kernel).unwrap()
    }

    fn run(&mut self) {
        self.event("vm", "booted");
        match self.guest().as_str() {
            "powers off" => self.event("vm", "shutdown"),
            "resets" => self.event("vm", "rebooting"),
            // As the real one does when a virtual processor fails.
            "fails" => {
                eprintln!("VCPU generated error");
                self.event("vm", "shutdown");
                self.event("vm", "deleted");
                self.event("vmm", "shutdown");
                process::exit(0);
            }
            "aborts" => process::abort(),
            _ => {}
        }
    }

    fn event(&mut self, source: &str, event: &str) {
        let text = format!("{{\n  \"source\": \"{source}\",\n  \"event\": \"{event}\"\n}}\n\n");
        self.events.write_all(text.as_bytes()).unwrap();
    }
}

/// Reads one request: its act, its body and the descriptor that came with it.
fn request(stream: &UnixStream) -> (String, Vec<u8>, Option<File>) {
    let mut bytes = Vec::new();
    let mut fd = None;
    loop {
        if let Some((act, length, begin)) = head(&bytes)
            && bytes.len() >= begin + length
        {
            return (act, bytes.split_off(begin), fd);
        }
        let mut chunk = [0; 1024];
        let mut space = cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(rights) = control {
                fd = rights.first().map(|number| writer(*number));
            }
        }
        let count = message.bytes;
        assert!(count > 0, "a request without an end");
        bytes.extend(&chunk[..count]);
    }
}

/// The pipe behind a descriptor of this process.
fn writer(number: impl Display) -> File {
    OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{number}"))
        .unwrap()
}

fn head(bytes: &[u8]) -> Option<(String, usize, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let act = text
        .split_whitespace()
        .nth(1)?
        .strip_prefix("/api/v1/")?
        .to_owned();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    Some((act, length.unwrap_or(0), end))
}
