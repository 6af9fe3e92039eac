//! Looks over the file systems that are this VM's own, before they are mounted. That is `e2fsck`'s work, which vmd adds to the
//! initramfs of those VMs that have such disks.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use super::{RootConfig, RootError, find};
use crate::{
    config::{VolumeConfig, VolumeSource},
    kernel::Kernel,
    logs::Logs,
    reap::Reaper,
};

const E2FSCK: &str = "/.kestrel/e2fsck";
/// How much of what it prints is told.
const WORDS: u64 = 2048;

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The exit code, or 128 and the signal's number.
    pub code: u32,
    /// What it printed.
    pub words: String,
}

/// Checks an ext4, and repairs what needs no decision.
pub trait Checker {
    /// `None` when there is no tool for it.
    ///
    /// # Errors
    /// It cannot be run.
    fn check(&self, device: &str) -> impl Future<Output = io::Result<Option<Checked>>> + Send;

    /// It is needed no more.
    fn forget(&self);
}

/// The real one.
#[derive(Clone, Debug)]
pub struct E2fsck(Arc<Reaper>);

impl E2fsck {
    #[must_use]
    pub fn new(reaper: Arc<Reaper>) -> Self {
        Self(reaper)
    }

    fn start(
        &self,
        device: &str,
        output: &File,
    ) -> io::Result<tokio::sync::oneshot::Receiver<crate::reap::Exit>> {
        let mut command = Command::new(E2FSCK);
        command
            .args(["-p", device])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?);
        Ok(self.0.spawn(&mut command)?.1)
    }
}

impl Checker for E2fsck {
    async fn check(&self, device: &str) -> io::Result<Option<Checked>> {
        if !Path::new(E2FSCK).exists() {
            return Ok(None);
        }
        // In memory: the root is the initramfs.
        let path = "/.kestrel/e2fsck.log";
        let mut output = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        fs::remove_file(path)?;
        let exit = self.start(device, &output)?;
        let exit = exit
            .await
            .map_err(|_| io::Error::other("its exit is lost"))?;
        let mut words = Vec::new();
        output.seek(SeekFrom::Start(0))?;
        output.take(WORDS).read_to_end(&mut words)?;
        let words = String::from_utf8_lossy(&words);
        Ok(Some(Checked {
            code: exit.code,
            words: words.split_whitespace().collect::<Vec<_>>().join(" "),
        }))
    }

    fn forget(&self) {
        // Its memory is the guest's.
        let _ = fs::remove_file(E2FSCK);
    }
}

/// What is to be done about a checked file system.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Clean,
    Repaired,
    Damaged,
}

/// Bits, as `e2fsck(8)` has them. "Reboot" is for who has it mounted; we have not.
fn judge(code: u32) -> Verdict {
    const REPAIRED: u32 = 1 | 2;
    match code {
        0 => Verdict::Clean,
        code if code & !REPAIRED == 0 => Verdict::Repaired,
        _ => Verdict::Damaged,
    }
}

/// Checks the root's layer and those volumes that are the VM's own. Before [`super::enter`], which leaves the initramfs.
///
/// # Errors
/// A disk is not there, or is damaged.
pub async fn check(
    kernel: &impl Kernel,
    checker: &impl Checker,
    root: Option<&RootConfig>,
    volumes: &[VolumeConfig],
    logs: &Logs,
) -> Result<(), RootError> {
    let layer = root.and_then(|root| root.layer_serial.as_deref());
    let layer = layer.map(|serial| ("the root's layer".to_owned(), serial));
    let own = volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::Disk { serial } if volume.owned && !volume.read_only => {
            Some((format!("the volume '{}'", volume.name), serial.as_str()))
        }
        VolumeSource::Disk { .. } | VolumeSource::Share { .. } => None,
    });
    for (what, serial) in layer.into_iter().chain(own) {
        let device = format!("/dev/{}", find(kernel, serial).await?.name);
        match checker.check(&device).await {
            Ok(None) => logs.say(&format!(
                "there is no e2fsck: {what} on {device} is not checked"
            )),
            Ok(Some(checked)) => match judge(checked.code) {
                Verdict::Clean => {}
                Verdict::Repaired => logs.say(&format!("repaired {what}: {}", checked.words)),
                Verdict::Damaged => {
                    let words = format!("{} (e2fsck: {})", checked.words, checked.code);
                    return Err(RootError::Damaged {
                        what,
                        device,
                        words,
                    });
                }
            },
            Err(source) => {
                return Err(RootError::Check {
                    what,
                    device,
                    source,
                });
            }
        }
    }
    checker.forget();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::fake::FakeKernel;

    #[derive(Debug, Default)]
    struct FakeChecker {
        code: u32,
        checked: Mutex<Vec<String>>,
    }

    impl Checker for FakeChecker {
        async fn check(&self, device: &str) -> io::Result<Option<Checked>> {
            self.checked.lock().unwrap().push(device.to_owned());
            Ok(Some(Checked {
                code: self.code,
                words: "its words".to_owned(),
            }))
        }

        fn forget(&self) {
            self.checked.lock().unwrap().push("forget".to_owned());
        }
    }

    fn volume(name: &str, source: VolumeSource, owned: bool, read_only: bool) -> VolumeConfig {
        VolumeConfig {
            name: name.to_owned(),
            source,
            target: format!("/{name}").into(),
            read_only,
            owned,
        }
    }

    fn disk(serial: &str) -> VolumeSource {
        VolumeSource::Disk {
            serial: serial.to_owned(),
        }
    }

    async fn run(code: u32) -> (Result<(), RootError>, Vec<String>) {
        let kernel = FakeKernel::default();
        for (name, serial) in [
            ("vda", "rootfs"),
            ("vdb", "vol-0"),
            ("vdc", "layer"),
            ("vdd", "img-1"),
        ] {
            kernel.has_disk(name, serial, b"");
        }
        let root = RootConfig {
            serial: "rootfs".to_owned(),
            format: None,
            layer_serial: Some("layer".to_owned()),
        };
        let share = VolumeSource::Share {
            tag: "share".to_owned(),
        };
        let volumes = [
            volume("data", disk("vol-0"), true, false),
            volume("models", disk("img-1"), false, true),
            volume("kept", disk("img-1"), true, true),
            volume("code", share, false, true),
        ];
        let checker = FakeChecker {
            code,
            ..FakeChecker::default()
        };
        let logs = Logs::default();
        let checked = check(&kernel, &checker, Some(&root), &volumes, &logs).await;
        (checked, checker.checked.into_inner().unwrap())
    }

    #[tokio::test]
    async fn what_is_the_vms_own_and_written_is_checked_and_nothing_else() {
        for code in [0, 1, 2, 3] {
            let (checked, devices) = run(code).await;
            checked.unwrap();
            assert_eq!(devices, ["/dev/vdc", "/dev/vdb", "forget"]);
        }
    }

    #[tokio::test]
    async fn what_stays_damaged_is_not_mounted_and_is_told_with_the_words() {
        for code in [4, 5, 8, 16, 32, 128, 139] {
            let (checked, devices) = run(code).await;
            let error = checked.unwrap_err().to_string();
            assert!(
                error.starts_with("the file system of the root's layer on /dev/vdc is damaged")
                    && error.contains(&format!("its words (e2fsck: {code})")),
                "{error}"
            );
            assert_eq!(devices, ["/dev/vdc"]);
        }
    }
}
