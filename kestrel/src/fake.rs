//! A kernel that only remembers what it was asked, for the tests of this crate.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use nix::{
    errno::Errno,
    sys::{reboot::RebootMode, signal::Signal},
    unistd::Pid,
};

use crate::{kernel::Kernel, mounts::Mount};

#[derive(Clone, Debug, Default)]
pub struct FakeKernel(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    calls: Vec<String>,
    failures: Vec<(String, Errno)>,
}

impl FakeKernel {
    /// Calls that begin with `call` fail from now on.
    pub fn fail(&self, call: &str, errno: Errno) {
        self.0
            .lock()
            .unwrap()
            .failures
            .push((call.to_owned(), errno));
    }

    pub fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().calls.clone()
    }

    fn call(&self, call: String) -> nix::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let failure = inner
            .failures
            .iter()
            .find(|(start, _)| call.starts_with(start));
        let result = failure.map_or(Ok(()), |(_, errno)| Err(*errno));
        inner.calls.push(call);
        result
    }
}

impl Kernel for FakeKernel {
    fn make_dir(&self, path: &str) -> nix::Result<()> {
        self.call(format!("mkdir {path}"))
    }

    fn mount(&self, mount: &Mount) -> nix::Result<()> {
        let flags: Vec<_> = mount.flags.iter_names().map(|(name, _)| name).collect();
        self.call(format!(
            "mount {} on {} {} '{}'",
            mount.kind,
            mount.target,
            flags.join(" | "),
            mount.data
        ))
    }

    fn unmount(&self, target: &Path) -> nix::Result<()> {
        self.call(format!("umount {}", target.display()))
    }

    fn remount_read_only(&self, target: &Path) -> nix::Result<()> {
        self.call(format!("read-only {}", target.display()))
    }

    fn set_hostname(&self, name: &str) -> nix::Result<()> {
        self.call(format!("hostname {name}"))
    }

    fn adopt_console(&self) -> io::Result<()> {
        Ok(self.call("console".to_owned())?)
    }

    fn catch_ctrl_alt_del(&self) -> nix::Result<()> {
        self.call("catch ctrl-alt-del".to_owned())
    }

    fn signal_group(&self, group: Pid, signal: Signal) -> nix::Result<()> {
        self.call(format!("signal {group} {signal}"))
    }

    fn kill_all(&self) {
        let _ = self.call("kill all".to_owned());
    }

    fn sync(&self) {
        let _ = self.call("sync".to_owned());
    }

    fn reboot(&self, how: RebootMode) -> Errno {
        let _ = self.call(format!("reboot {how:?}"));
        Errno::EPERM
    }
}
