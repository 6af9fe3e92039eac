//! A kernel that only remembers what it was asked, for the tests of this crate.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{reboot::RebootMode, signal::Signal},
    unistd::Pid,
};

use crate::{
    kernel::{Kernel, Owner},
    mounts::Mount,
    root::Disk,
};

#[derive(Clone, Debug, Default)]
pub struct FakeKernel(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    calls: Vec<String>,
    failures: Vec<(String, Errno)>,
    disks: Vec<(Disk, Vec<u8>)>,
    held: Vec<String>,
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

    pub fn has_disk(&self, name: &str, serial: &str, head: &[u8]) {
        let disk = Disk {
            name: name.to_owned(),
            serial: serial.to_owned(),
        };
        self.0.lock().unwrap().disks.push((disk, head.to_vec()));
    }

    /// An ext4 that is mounted somewhere.
    pub fn holds(&self, disk: &str) {
        self.0.lock().unwrap().held.push(disk.to_owned());
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
    fn make_dir(&self, path: &str, mode: u32) -> nix::Result<()> {
        self.call(format!("mkdir {path} {mode:o}"))
    }

    fn make_link(&self, path: &str, target: &str) -> nix::Result<()> {
        self.call(format!("link {path} to {target}"))
    }

    fn make_mount_point(&self, path: &str) -> io::Result<()> {
        Ok(self.call(format!("mount point {path}"))?)
    }

    fn copy_owner(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(self.call(format!("owner {from} to {to}"))?)
    }

    fn make_dirs(&self, path: &Path) -> io::Result<()> {
        Ok(self.call(format!("mkdirs {}", path.display()))?)
    }

    fn owner(&self, _: &Path) -> io::Result<Owner> {
        Ok(Owner {
            uid: 0,
            gid: 0,
            mode: 0o755,
        })
    }

    fn adopt_if_new(&self, path: &Path, _: Owner) -> io::Result<()> {
        Ok(self.call(format!("adopt {}", path.display()))?)
    }

    fn grow(&self, disk: &str, target: &str) -> io::Result<Option<u64>> {
        self.call(format!("grow {disk} at {target}"))?;
        Ok(None)
    }

    fn held_disks(&self) -> Vec<String> {
        self.0.lock().unwrap().held.clone()
    }

    fn disks(&self) -> io::Result<Vec<Disk>> {
        let inner = self.0.lock().unwrap();
        Ok(inner.disks.iter().map(|(disk, _)| disk.clone()).collect())
    }

    fn head(&self, device: &str) -> io::Result<Vec<u8>> {
        let inner = self.0.lock().unwrap();
        let mut disks = inner.disks.iter();
        let (_, head) = disks
            .find(|(disk, _)| device == format!("/dev/{}", disk.name))
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(head.clone())
    }

    fn move_mount(&self, from: &str, to: &str) -> nix::Result<()> {
        self.call(format!("move {from} to {to}"))
    }

    fn empty_initramfs(&self) -> io::Result<()> {
        Ok(self.call("empty the initramfs".to_owned())?)
    }

    fn change_root(&self, root: &str) -> nix::Result<()> {
        self.call(format!("root {root}"))
    }

    fn set_parameter(&self, name: &str, value: &str) -> io::Result<()> {
        Ok(self.call(format!("set {name} to {value}"))?)
    }

    fn mount(&self, mount: &Mount) -> nix::Result<()> {
        let flags: Vec<_> = mount.flags.iter_names().map(|(name, _)| name).collect();
        let device = match mount.source {
            source if source == mount.kind => String::new(),
            source => format!(" {source}"),
        };
        self.call(format!(
            "mount {}{device} on {} {} '{}'",
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

    fn signal_init(&self, number: i32) -> nix::Result<()> {
        self.call(format!("signal init {number}"))
    }

    fn set_clock(&self, time: Duration) -> nix::Result<()> {
        self.call(format!("clock {}", time.as_nanos()))
    }

    fn become_program(&self, program: &Path, _: &BTreeMap<String, String>) -> io::Error {
        let _ = self.call(format!("become {}", program.display()));
        io::ErrorKind::PermissionDenied.into()
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
