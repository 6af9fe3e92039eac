//! The driver of QEMU against fakes that keep the real ones' contract: the descriptors that they inherit, QEMU's
//! monitor and how it ends, and the sockets of vhost-device-vsock. Real guests are booted by the whole-system tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    env,
    fs::{self, File},
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{io::AsyncReadExt, time::timeout};
use vmd::hypervisor::{
    Hypervisor, LaunchError, Machine, MachineSpec, Qemu, ResizeError, VmmExit, detect::Accel,
};
use volant_spec::Resources;

const DEADLINE: Duration = Duration::from_secs(20);
const VHOST: &str = "FAKE_VHOST";
const GUEST: &str = "FAKE_GUEST";

/// QEMU as far as the driver sees it. The kernel's text tells how its guest behaves.
const FAKE_QEMU: &str = r#"#!/bin/bash
for argument; do
    case $argument in
    socket,id=monitor,fd=*) monitor=${argument##*=} ;;
    socket,id=console,fd=*) console=${argument##*=} ;;
    /proc/self/fd/*) kernel=${kernel:-$argument} ;;
    esac
done
guest=$(< /proc/$$/${kernel#/proc/self/})
say() { echo "$1" >&$monitor; }
answer() {
    read -r line <&$monitor
    id=${line##*\"id\":}
    say "{\"return\": {}, \"id\": ${id%\}*}}"
}
[ "$guest" = 'does not load' ] && { echo 'qemu: could not load kernel' >&2; exit 1; }
echo -n 'first byte' >&$console
say '{"QMP": {"version": {}, "capabilities": []}}'
answer
[ "$guest" = waits ] && answer
case $guest in
waits | 'powers off') say '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}' ;;
resets) say '{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}' ;;
is\ terminated) say '{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}' ;;
fails) echo 'qemu: cannot go on' >&2; exit 1 ;;
aborts) kill -ABRT $$ ;;
*) read -r line <&$monitor ;;
esac
"#;

fn programs() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    // Made once, before anything is started: nobody executes what another still writes.
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let vsock = format!(
            "#!/bin/sh\n[ \"$1 $3 $5\" = '--guest-cid --socket --uds-path' ] || exit 2\n\
             export {VHOST}=\"$4\" {GUEST}=\"$6\"\n\
             exec '{}' --exact the_fake_vsock_is_this_test --nocapture >/dev/null\n",
            env::current_exe().unwrap().display()
        );
        for (name, text) in [("qemu", FAKE_QEMU), ("vsock", &vsock)] {
            let script = folder.path().join(name);
            fs::write(&script, text).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    });
    folder.path()
}

/// Is vhost-device-vsock when a script says so, and does nothing else.
#[test]
fn the_fake_vsock_is_this_test() {
    if let (Ok(vhost), Ok(guest)) = (env::var(VHOST), env::var(GUEST)) {
        let _guest = UnixListener::bind(guest).unwrap();
        let vhost = UnixListener::bind(vhost).unwrap();
        let (mut qemu, _) = vhost.accept().unwrap();
        let _ = qemu.read(&mut [0]);
        // As the real one, it waits for the next QEMU.
        let _ = vhost.accept();
    }
}

async fn launch_with(
    qemu: PathBuf,
    vsock: PathBuf,
    folder: &Path,
    guest: &str,
) -> Result<Machine, LaunchError> {
    let kernel = folder.join("kernel");
    fs::write(&kernel, guest).unwrap();
    let spec = MachineSpec {
        name: "web".parse().unwrap(),
        uuid: "0190b6a0-0000-7000-8000-000000000001".to_owned(),
        resources: Resources::new(2, 256).unwrap(),
        kernel: File::open(&kernel).unwrap().into(),
        initramfs: Some(File::open(&kernel).unwrap().into()),
        rootfs: None,
        disks: Vec::new(),
        shares: Vec::new(),
        devices: Vec::new(),
        nic: None,
        cid: 5,
        run_dir: folder.to_owned(),
        vsock: folder.join("vsock"),
    };
    let driver = Qemu::new(qemu, vsock, Accel::Tcg);
    timeout(DEADLINE, driver.launch(spec)).await.unwrap()
}

async fn launch(folder: &Path, guest: &str) -> Result<Machine, LaunchError> {
    launch_with(
        programs().join("qemu"),
        programs().join("vsock"),
        folder,
        guest,
    )
    .await
}

async fn end(machine: &mut Machine) -> VmmExit {
    timeout(DEADLINE, machine.control.wait()).await.unwrap()
}

/// The folder has nothing but the kernel, and no process names it on its command line or in its environment.
fn is_clean(folder: &Path) -> bool {
    let files = fs::read_dir(folder).unwrap().count();
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").unwrap().filter(|entry| {
        let process = entry.as_ref().unwrap().path();
        let names = |file| {
            fs::read(process.join(file))
                .is_ok_and(|text| String::from_utf8_lossy(&text).contains(&name))
        };
        names("cmdline") || names("environ")
    });
    files == 1 && processes.count() == 0
}

#[tokio::test]
async fn a_machine_runs_until_its_power_button_is_pressed() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = launch(folder.path(), "waits").await.unwrap();
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
    assert!(is_clean(folder.path()));
    let error = machine
        .control
        .press_power_button()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("qemu-system-x86_64 did not press the power button: "),
        "{error}"
    );
}

#[tokio::test]
async fn a_machine_pauses_and_goes_on_but_is_not_resized() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = launch(folder.path(), "pauses").await.unwrap();
    let of = |cpus| Resources::new(cpus, 256).unwrap();
    let error = machine.control.resize(of(2), of(4)).await.unwrap_err();
    assert!(matches!(error, ResizeError::Unsupported(_)), "{error}");
    let pid = machine.pid;
    // The kernel stops a process at its next step, not within the call.
    let becomes_still = async |still: bool| {
        let look = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        let wait = async {
            while look() != still {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap();
    };
    becomes_still(false).await;
    machine.control.pause().await.unwrap();
    becomes_still(true).await;
    machine.control.resume().await.unwrap();
    becomes_still(false).await;
    machine.control.pause().await.unwrap();
    machine.control.kill().await;
    let error = machine.control.pause().await.unwrap_err().to_string();
    assert!(error.contains("did not pause the guest"), "{error}");
}

#[tokio::test]
async fn the_ends_of_a_machine_are_told_apart() {
    let program = "qemu-system-x86_64";
    let exited = |code, message: &str| VmmExit::Exited {
        program,
        code,
        message: message.to_owned(),
    };
    for (guest, expected) in [
        ("powers off", VmmExit::GuestPowerOff),
        ("resets", VmmExit::GuestReset),
        ("is terminated", exited(0, "it printed nothing")),
        ("fails", exited(1, "qemu: cannot go on")),
        ("aborts", VmmExit::Killed { program, signal: 6 }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = launch(folder.path(), guest).await.unwrap();
        assert_eq!(end(&mut machine).await, expected, "{guest}");
        assert!(is_clean(folder.path()), "{guest}");
    }
}

#[tokio::test]
async fn a_killed_machine_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = launch(folder.path(), "runs").await.unwrap();
    assert!(!is_clean(folder.path()));
    machine.control.kill().await;
    assert!(is_clean(folder.path()));
    let killed = VmmExit::Killed {
        program: "qemu-system-x86_64",
        signal: 9,
    };
    assert_eq!(end(&mut machine).await, killed);
}

#[tokio::test]
async fn a_lost_vsock_ends_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = launch(folder.path(), "runs").await.unwrap();
    let vsock = folder.path().join("vsock").display().to_string();
    let pattern = format!("{GUEST}={vsock}\0");
    let holds = |process: &Path| {
        fs::read(process.join("environ"))
            .is_ok_and(|text| String::from_utf8_lossy(&text).contains(&pattern))
    };
    let process = fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| holds(path));
    let pid = process.unwrap().file_name().unwrap().to_owned();
    assert!(
        Command::new("kill")
            .arg("-9")
            .arg(pid)
            .status()
            .unwrap()
            .success()
    );
    let killed = VmmExit::Killed {
        program: "vhost-device-vsock",
        signal: 9,
    };
    assert_eq!(end(&mut machine).await, killed);
    assert!(is_clean(folder.path()));
}

#[tokio::test]
async fn a_start_that_fails_is_told_and_leaves_nothing() {
    let nowhere = || PathBuf::from("/nowhere/program");
    let script = |name| programs().join(name);
    let loads = "qemu-system-x86_64 ended while it started (code 1): qemu: could not load kernel";
    let absent = "qemu-system-x86_64 is not installed; install the package qemu-system-x86";
    let no_vsock = "vhost-device-vsock is not installed; reinstall the package volant";
    let broken = "vhost-device-vsock ended while it started (code 1): it printed nothing";
    for (qemu, vsock, expected) in [
        (script("qemu"), script("vsock"), loads),
        (nowhere(), script("vsock"), absent),
        (script("qemu"), nowhere(), no_vsock),
        (script("qemu"), PathBuf::from("/bin/false"), broken),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let error = launch_with(qemu, vsock, folder.path(), "does not load")
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(is_clean(folder.path()), "{expected}");
    }
}
