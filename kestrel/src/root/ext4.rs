//! An ext4 that is this VM's own: mounted to be written, and grown to its disk.

use std::io;

use nix::mount::MsFlags;

use super::{Disk, RootError};
use crate::{kernel::Kernel, logs::Logs, mounts::Mount};

/// Space that is free again goes back to the host. Errors end the writing, not the guest.
const OPTIONS: &str = "discard,errors=remount-ro";
/// Where the superblock is, and where in it its fields are.
const SUPERBLOCK: usize = 1024;
const BLOCKS: usize = 0x04;
const LOG_BLOCK_SIZE: usize = 0x18;
const MAGIC: usize = 0x38;
const INCOMPAT: usize = 0x60;
const BLOCKS_HIGH: usize = 0x150;
const HAS_64_BITS: u32 = 0x80;

/// Mounts the disk on a folder that is there. `what` it is, for people.
pub(super) fn mount_own(
    kernel: &impl Kernel,
    disk: &Disk,
    target: &str,
    what: &str,
    logs: &Logs,
) -> Result<(), RootError> {
    let device = format!("/dev/{}", disk.name);
    let mount = Mount {
        source: &device,
        kind: "ext4",
        target,
        flags: MsFlags::MS_NODEV,
        data: OPTIONS,
        needed: true,
    };
    if let Err(errno) = kernel.mount(&mount) {
        return Err(RootError::Disk {
            what: what.to_owned(),
            device,
            source: errno.into(),
        });
    }
    match kernel.grow(&disk.name, target) {
        Ok(None) => {}
        Ok(Some(bytes)) => logs.say(&format!("{what} has {} MiB now", bytes >> 20)),
        // What was there before is there still.
        Err(error) => logs.say(&format!("cannot grow {what} to its disk: {error}")),
    }
    Ok(())
}

/// The size of a block, and how many bytes the ext4 has that begins with `head`.
///
/// # Errors
/// It is no ext4.
pub fn ext4_bytes(head: &[u8]) -> io::Result<(u64, u64)> {
    let number = |at: usize| {
        let bytes = head.get(SUPERBLOCK + at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let parse = || {
        let magic = number(MAGIC)? & 0xffff;
        let power = number(LOG_BLOCK_SIZE).filter(|power| magic == 0xef53 && *power <= 6)?;
        let has_high = number(INCOMPAT)? & HAS_64_BITS != 0;
        let high = if has_high { number(BLOCKS_HIGH)? } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(number(BLOCKS)?);
        let block = 1024_u64 << power;
        Some((block, blocks.checked_mul(block)?))
    };
    parse().ok_or_else(|| io::Error::other("its superblock makes no sense"))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_size_of_what_mke2fs_makes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        for (block, features) in [("4096", "64bit"), ("1024", "^64bit")] {
            let file = fs::File::create(&image).unwrap();
            file.set_len(64 << 20).unwrap();
            let mut command = Command::new("/usr/sbin/mke2fs");
            command.args(["-q", "-F", "-t", "ext4", "-b", block, "-O", features]);
            assert!(command.arg(&image).status().unwrap().success());
            let head = fs::read(&image).unwrap();
            let expected = (block.parse().unwrap(), 64 << 20);
            assert_eq!(ext4_bytes(&head[..4096]).unwrap(), expected);
        }
        assert!(ext4_bytes(&[0; 4096]).is_err());
    }

    proptest! {
        #[test]
        fn any_superblock_is_answered(head in prop::collection::vec(any::<u8>(), 1024..1500)) {
            let mut head = head;
            if head.len() > 1024 + MAGIC + 1 {
                head[1024 + MAGIC..1024 + MAGIC + 2].copy_from_slice(&[0x53, 0xef]);
            }
            let _ = ext4_bytes(&head);
        }
    }
}
