//! A bus of the test's own, and a `vmd` that believes that it is the system's, under a manager that the test plays.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tokio::{net::UnixDatagram, time::timeout};
use zbus::{Connection, connection::Builder};

const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// A bus daemon that ends with this value.
#[derive(Debug)]
pub struct Bus {
    daemon: Child,
    pub folder: tempfile::TempDir,
}

impl Bus {
    /// `None` where there is no dbus-daemon: the test says so and is skipped.
    pub async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let config = folder.path().join("bus.conf");
        let socket = folder.path().join("bus");
        fs::write(&config, CONFIG.replace("SOCKET", socket.to_str().unwrap())).unwrap();
        let spawned = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile"])
            .stdin(Stdio::null())
            .spawn();
        let Ok(daemon) = spawned else {
            eprintln!("skipped: there is no dbus-daemon");
            return None;
        };
        let bus = Self { daemon, folder };
        drop(bus.connect().await);
        Some(bus)
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.folder.path().join("bus").display())
    }

    /// Connects once the daemon listens.
    pub async fn connect(&self) -> Connection {
        let connected = timeout(Duration::from_secs(10), async {
            loop {
                match Builder::address(self.address().as_str()).build().await {
                    Ok(connection) => return connection,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        connected.await.expect("the bus listens in time")
    }

    /// Starts `vmd web`, with a manager's socket that hears what it says.
    pub fn vmd(&self, config: &Path) -> Vmd {
        self.vmd_of(Path::new(env!("CARGO_BIN_EXE_vmd")), config)
    }

    /// The same for another vmd, which looks for programs beside it first.
    pub fn vmd_of(&self, program: &Path, config: &Path) -> Vmd {
        let path = self.folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let beside = program.parent().unwrap().display();
        let programs = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .arg("web")
            .arg("--config")
            .arg(config)
            .arg("--run-dir")
            .arg(self.folder.path().join("run"))
            .arg("--socket-dir")
            .arg(self.folder.path().join("sockets"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .env("NOTIFY_SOCKET", &path)
            .env("PATH", format!("{beside}:{programs}"))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        // Another test's child may hold the program open for writing until it has begun its own.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let vmd = loop {
            match command.spawn() {
                Err(error)
                    if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && std::time::Instant::now() < deadline => {}
                started => break started.unwrap(),
            }
        };
        let run_dir = self.folder.path().join("run");
        fs::create_dir_all(&run_dir).unwrap();
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o777)).unwrap();
        Vmd {
            vmd,
            manager,
            run_dir,
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A supervisor's process.
#[derive(Debug)]
pub struct Vmd {
    pub vmd: Child,
    manager: UnixDatagram,
    pub run_dir: PathBuf,
}

impl Vmd {
    /// Waits for something that vmd tells the manager.
    pub async fn says(&self, text: &str, limit: Duration) -> String {
        let mut heard = Vec::new();
        let wait = async {
            let mut buffer = [0; 4096];
            loop {
                let length = self.manager.recv(&mut buffer).await.unwrap();
                let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if said.contains(text) {
                    return said;
                }
                heard.push(said);
            }
        };
        match timeout(limit, wait).await {
            Ok(said) => said,
            Err(_) => panic!("vmd did not say {text}, but {heard:#?}"),
        }
    }

    /// What it exited with, and all that it logged.
    pub fn end(self) -> (ExitStatus, String) {
        let output = self.vmd.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status, log)
    }
}
