//! Booting, entering, rebooting and ending a throw-away host.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use crate::{
    eventually,
    mounts::{self, Root},
};

/// What a host is made from.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Folders laid over this machine's `/`, topmost first: what an earlier host wrote ([`Host::upper`]).
    pub layers: Vec<PathBuf>,
}

/// A running systemd host. Dropping it ends it and removes all that it wrote.
#[derive(Debug)]
pub struct Host {
    root: Root,
    container: Child,
    leader: u32,
}

/// Services that a developer's machine may have enabled and that a Volant host does not need.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "containerd.service",
    "cron.service",
    "docker.service",
    "docker.socket",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "exim4.service",
    "fstrim.timer",
    "man-db.timer",
    "nginx.service",
    "postgresql.service",
    "redis-server.service",
    "rsyslog.service",
    "ssh.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "unattended-upgrades.service",
];
/// Units that a Volant host cannot do without.
const NEEDED: &[&str] = &["dbus", "polkit", "systemd-journald", "systemd-logind"];
const FOLDER: &str = "/run/volant-host";
const BOOT_LIMIT: Duration = Duration::from_secs(120);
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Host {
    /// Boots a host and waits until its systemd has started everything.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the host does not come up; the error has the end of its console.
    pub fn start(options: &Options) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "a throw-away host needs root: it mounts and makes namespaces"
        );
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        mounts::sweep(Path::new(FOLDER));
        let base = Path::new(FOLDER).join(format!("{}-{number}", std::process::id()));
        let root = Root::mount(&base, &options.layers)?;
        let etc = root.path().join("etc");
        fs::write(etc.join("machine-id"), "").context("cannot empty the host's machine-id")?;
        fs::write(etc.join("hostname"), "volant-host\n").context("cannot name the host")?;
        for unit in MASKED {
            let link = etc.join("systemd/system").join(unit);
            if fs::symlink_metadata(&link).is_ok() {
                fs::remove_file(&link).ok();
            }
            symlink("/dev/null", &link).with_context(|| format!("cannot mask {unit}"))?;
        }
        let (container, leader) = boot(&root)?;
        let host = Self {
            root,
            container,
            leader,
        };
        host.wait_until_up()?;
        host.make_devices()?;
        Ok(host)
    }

    /// The host's `/`, seen from outside.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.root.path()
    }

    /// What the host wrote: a layer for later hosts, once this one was [shut down](Self::power_off).
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.root.upper()
    }

    /// A command that runs in the host, as root, with a clean environment.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &self.leader.to_string(),
                "-m",
                "-u",
                "-i",
                "-n",
                "-p",
                "-C",
                "-r",
                "-w",
                "--",
                program,
            ])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .envs([
                ("HOME", "/root"),
                ("LANG", "C.UTF-8"),
                ("TERM", "dumb"),
                ("SYSTEMD_PAGER", ""),
            ])
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script in the host and gives what it printed to standard output.
    ///
    /// # Errors
    /// It failed: the error has the script, the status and both outputs.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.try_sh(script)?;
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            output.status.success(),
            "in the host: {script}\n{}\n{stdout}{stderr}",
            output.status
        );
        Ok(stdout.into_owned())
    }

    /// Runs a shell script in the host, whatever its status.
    ///
    /// # Errors
    /// It could not be started.
    pub fn try_sh(&self, script: &str) -> Result<Output> {
        self.command("/bin/sh")
            .args(["-c", script])
            .output()
            .context("cannot enter the host")
    }

    /// Reboots the host: everything below `/run` is lost, files stay.
    ///
    /// # Errors
    /// It does not go down or come up.
    pub fn reboot(&mut self) -> Result<()> {
        self.power_off()?;
        (self.container, self.leader) = boot(&self.root)?;
        self.wait_until_up()?;
        self.make_devices()
    }

    /// Shuts the host down in order. Its files stay until it is dropped.
    ///
    /// # Errors
    /// It does not end.
    pub fn power_off(&mut self) -> Result<()> {
        // SIGRTMIN+4 is systemd's "poweroff.target".
        let number = nix::libc::SIGRTMIN() + 4;
        let status = Command::new("kill")
            .args([&format!("-{number}"), &self.leader.to_string()])
            .status();
        ensure!(
            status.context("cannot run kill")?.success(),
            "cannot ask the host to power off"
        );
        eventually("the host has powered off", Duration::from_secs(120), || {
            self.container
                .try_wait()
                .context("cannot wait for the host")
        })?;
        Ok(())
    }

    /// The end of what the host printed on its console.
    #[must_use]
    pub fn console(&self) -> String {
        console(self.root.base())
    }

    /// Device nodes with the modes that udev gives them; a container has no udev of its own.
    fn make_devices(&self) -> Result<()> {
        self.sh("mkdir -p /dev/net && rm -f /dev/net/tun && mknod -m 0666 /dev/net/tun c 10 200")?;
        if Path::new("/dev/kvm").exists() {
            self.sh("mknod -m 0660 /dev/kvm c 10 232; chgrp kvm /dev/kvm 2>/dev/null || true")?;
        }
        Ok(())
    }

    fn wait_until_up(&self) -> Result<()> {
        eventually("the host's systemd is up", BOOT_LIMIT, || {
            let output = self.try_sh("systemctl is-system-running 2>/dev/null")?;
            match String::from_utf8_lossy(&output.stdout).trim() {
                "running" => Ok(Some(())),
                // Something that this machine has enabled does not work in a container.
                "degraded" => {
                    let failed = self.sh("systemctl --failed --no-legend --plain")?;
                    ensure!(
                        !NEEDED.iter().any(|unit| failed.contains(unit)),
                        "the host came up without what it needs:\n{failed}"
                    );
                    eprintln!("these units of this machine fail in the throw-away host:\n{failed}");
                    Ok(Some(()))
                }
                _ => Ok(None),
            }
        })
        .with_context(|| format!("the end of the host's console:\n{}", self.console()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if matches!(self.container.try_wait(), Ok(Some(_))) {
            return;
        }
        // Killing the host's PID 1 ends every process in it.
        if let Ok(leader) = i32::try_from(self.leader) {
            kill(Pid::from_raw(leader), Signal::SIGKILL).ok();
        }
        let ended = eventually("the host has ended", Duration::from_secs(20), || {
            self.container
                .try_wait()
                .context("cannot wait for the host")
        });
        if ended.is_err() {
            self.container.kill().ok();
            self.container.wait().ok();
        }
    }
}

/// Starts systemd-nspawn on a terminal of its own and finds the host's PID 1.
fn boot(root: &Root) -> Result<(Child, u32)> {
    // Under a systemd, nspawn asks it for a control group that is delegated to the host; else the host has ours.
    let is_under_systemd = Path::new("/run/systemd/system").is_dir();
    let keep_unit = if is_under_systemd { "" } else { "--keep-unit" };
    // nspawn's own filter does not know Landlock, by which vmd confines virtiofsd.
    let nspawn = format!(
        "exec setpriv --pdeathsig KILL systemd-nspawn --quiet --boot --register=no {keep_unit} --private-network --link-journal=no \
         --capability=all --system-call-filter='landlock_create_ruleset landlock_add_rule landlock_restrict_self' \
         --hostname=volant-host -D {}",
        root.path().display()
    );
    // When this process is killed, the host is too: `script` first, then systemd-nspawn, then all that runs in it.
    let mut container = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "script", "-qfc", &nspawn])
        .arg(root.base().join("console.log"))
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start `script` (package bsdutils)")?;
    let found = eventually(
        "systemd-nspawn has started the host's PID 1",
        BOOT_LIMIT,
        || {
            if let Some(status) = container
                .try_wait()
                .context("cannot wait for systemd-nspawn")?
            {
                bail!("systemd-nspawn ended ({status}):\n{}", console(root.base()));
            }
            Ok(pid_1_below(container.id()))
        },
    );
    if found.is_err() {
        container.kill().ok();
        container.wait().ok();
    }
    Ok((container, found?))
}

/// The process below `ancestor` that is PID 1 of another namespace.
fn pid_1_below(ancestor: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{ancestor}/task/{ancestor}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .find_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let inner = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?;
            let is_systemd =
                fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == "systemd";
            let levels: Vec<&str> = inner.split_whitespace().collect();
            if levels.len() > 1 && levels.last() == Some(&"1") && is_systemd {
                Some(pid)
            } else {
                pid_1_below(pid)
            }
        })
}

fn console(base: &Path) -> String {
    let bytes = fs::read(base.join("console.log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4096)..]).into_owned()
}
