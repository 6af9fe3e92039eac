//! File systems besides the root: disks, and directories of the host.

use std::{io, path::Path};

use nix::mount::MsFlags;

use super::{Disk, RootError, examine, ext4, find};
use crate::{
    config::{VolumeConfig, VolumeSource},
    kernel::Kernel,
    logs::Logs,
    mounts::{Mount, TAME},
};

/// Mounts the volumes, in their order. Folders that are missing are made.
///
/// # Errors
/// One cannot be mounted; the ones before it are.
pub async fn mount_volumes(
    kernel: &impl Kernel,
    volumes: &[VolumeConfig],
    logs: &Logs,
) -> Result<(), RootError> {
    for volume in volumes {
        mount_volume(kernel, volume, logs)
            .await
            .map_err(|source| RootError::Volume {
                name: volume.name.clone(),
                source: Box::new(source),
            })?;
    }
    Ok(())
}

async fn mount_volume(
    kernel: &impl Kernel,
    volume: &VolumeConfig,
    logs: &Logs,
) -> Result<(), RootError> {
    let target = volume.target.to_string_lossy();
    let step = |act| super::step(act, &target);
    kernel
        .make_dirs(&volume.target)
        .map_err(step("make the folder"))?;
    match &volume.source {
        VolumeSource::Disk { serial } => {
            let disk = find(kernel, serial).await?;
            if !volume.owned || volume.read_only {
                return mount_image(kernel, &disk, &target);
            }
            // Whoever runs in the guest may write where the image lets it: a disk that is new has the image's owner.
            let owner = kernel
                .owner(&volume.target)
                .map_err(step("look at the folder"))?;
            let what = format!("the volume '{}'", volume.name);
            ext4::mount_own(kernel, &disk, &target, &what, logs)?;
            kernel
                .adopt_if_new(&volume.target, owner)
                .map_err(step("give an owner to"))
        }
        VolumeSource::Share { tag } => {
            let mount = Mount {
                source: tag,
                kind: "virtiofs",
                target: &target,
                flags: TAME.union(MsFlags::MS_RDONLY),
                data: "",
                needed: true,
            };
            kernel
                .mount(&mount)
                .map_err(|errno| RootError::Share(errno.into()))
        }
    }
}

fn mount_image(kernel: &impl Kernel, disk: &Disk, target: &str) -> Result<(), RootError> {
    let device = format!("/dev/{}", disk.name);
    let format = examine(kernel, &device, None)?;
    let mount = Mount {
        source: &device,
        kind: format.as_str(),
        target,
        flags: MsFlags::MS_RDONLY.union(MsFlags::MS_NODEV),
        data: format.options(),
        needed: true,
    };
    kernel.mount(&mount).map_err(|errno| RootError::Image {
        device: device.clone(),
        format,
        source: errno.into(),
    })
}

/// Whether nobody has put anything on a disk, which has only what made its file system.
///
/// # Errors
/// The folder cannot be listed.
pub fn is_new(folder: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::fake::FakeKernel;

    fn volume(name: &str, source: VolumeSource, owned: bool) -> VolumeConfig {
        VolumeConfig {
            name: name.to_owned(),
            source,
            target: format!("/srv/{name}").into(),
            read_only: !owned,
            owned,
        }
    }

    fn disk(serial: &str) -> VolumeSource {
        VolumeSource::Disk {
            serial: serial.to_owned(),
        }
    }

    fn share() -> VolumeSource {
        VolumeSource::Share {
            tag: "share-2".to_owned(),
        }
    }

    #[tokio::test]
    async fn volumes_are_mounted_in_their_order_by_what_they_are() {
        let kernel = FakeKernel::default();
        kernel.has_disk("vda", "rootfs", b"hsqs");
        kernel.has_disk("vdb", "img-1", b"hsqs");
        kernel.has_disk("vdc", "vol-0", b"");
        let volumes = [
            volume("data", disk("vol-0"), true),
            volume("models", disk("img-1"), false),
            volume("code", share(), false),
        ];
        let logs = Logs::default();
        mount_volumes(&kernel, &volumes, &logs).await.unwrap();
        assert_eq!(
            kernel.calls(),
            [
                "mkdirs /srv/data",
                "mount ext4 /dev/vdc on /srv/data MS_NODEV 'discard,errors=remount-ro'",
                "grow vdc at /srv/data",
                "adopt /srv/data",
                "mkdirs /srv/models",
                "mount squashfs /dev/vdb on /srv/models MS_RDONLY | MS_NODEV ''",
                "mkdirs /srv/code",
                "mount virtiofs share-2 on /srv/code MS_RDONLY | MS_NOSUID | MS_NODEV ''",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_cannot_be_mounted_is_named() {
        let kernel = FakeKernel::default();
        kernel.has_disk("vda", "img-0", b"gibberish");
        kernel.fail("mount virtiofs", Errno::EINVAL);
        for (source, owned, expected) in [
            (
                disk("vol-7"),
                true,
                "no disk with the serial number 'vol-7'",
            ),
            (disk("img-0"), false, "no squashfs, erofs or ext4"),
            (share(), false, "the host's directory"),
        ] {
            let volumes = [volume("data", source, owned)];
            let mounted = mount_volumes(&kernel, &volumes, &Logs::default()).await;
            let error = mounted.unwrap_err();
            assert_eq!(error.to_string(), "cannot mount the volume 'data'");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(expected), "{source}");
        }
    }

    #[test]
    fn a_disk_with_a_file_is_not_new() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lost+found")).unwrap();
        assert!(is_new(folder.path()).unwrap());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(!is_new(folder.path()).unwrap());
    }
}
