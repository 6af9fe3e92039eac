//! fs-verity: where the file system has it, the kernel checks each read of a file, and nobody can write to it.

use std::{fs::File, io};

use rustix::ioctl::{Setter, Updater, ioctl, opcode};

/// `struct fsverity_enable_arg`.
#[repr(C)]
#[derive(Debug)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// `struct fsverity_digest`, whose bare head gives the ioctl its number, with room for a digest behind.
#[repr(C)]
#[derive(Debug)]
struct Measured {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

const ENABLE: rustix::ioctl::Opcode = opcode::write::<EnableArg>(b'f', 133);
const MEASURE: rustix::ioctl::Opcode = opcode::read_write::<[u16; 2]>(b'f', 134);
const SHA256: u32 = 1;

/// Has the kernel protect a file that nobody has open for writing, if the file system can; whether it can is not an error.
/// The caller must own the file, with the permission to write to it.
pub(super) fn enable(file: &File) -> io::Result<()> {
    let arg = EnableArg {
        version: 1,
        hash_algorithm: SHA256,
        block_size: 4096,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    #[allow(
        unsafe_code,
        reason = "there is no safe wrapper for FS_IOC_ENABLE_VERITY"
    )]
    // SAFETY: the number is that of FS_IOC_ENABLE_VERITY, which reads one `struct fsverity_enable_arg`, laid out as above;
    // it has no salt and no signature, so that no pointer in it is followed.
    let enabled = unsafe { ioctl(file, Setter::<ENABLE, EnableArg>::new(arg)) };
    Ok(enabled?)
}

/// The digest that the kernel holds a file to; `None` when it does not.
pub(super) fn measure(file: &File) -> Option<String> {
    let mut measured = Measured {
        algorithm: 0,
        size: 64,
        digest: [0; 64],
    };
    #[allow(
        unsafe_code,
        reason = "there is no safe wrapper for FS_IOC_MEASURE_VERITY"
    )]
    // SAFETY: the number is that of FS_IOC_MEASURE_VERITY, which reads `size` and then writes a head and at most `size`
    // bytes behind it: there is room for 64.
    let done = unsafe { ioctl(file, Updater::<MEASURE, Measured>::new(&mut measured)) };
    done.ok()?;
    let digest = measured.digest.get(..usize::from(measured.size))?;
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{}:{hex}", measured.algorithm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        // From linux/fsverity.h, as _IOW('f', 133, 128 bytes) and _IOWR('f', 134, 4 bytes).
        assert_eq!((ENABLE, MEASURE), (0x4080_6685, 0xc004_6686));
        assert_eq!(size_of::<EnableArg>(), 128);
    }

    #[test]
    fn a_file_without_it_has_no_digest() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(measure(&file), None);
    }
}
