//! Whether a file is a kernel that our VMMs boot. Reads a bounded part of it and trusts none of it.

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// The kernels that boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelImage {
    /// Uncompressed ELF with a PVH entry: the fastest.
    Vmlinux,
    /// Compressed, with its own loader.
    BzImage,
}

/// Why a file is not taken as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelImageError {
    #[error("cannot read the kernel {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no kernel that boots here (an x86-64 vmlinux with a PVH note, or a bzImage), but {looks}", path.display())]
    NoKernel { path: PathBuf, looks: Looks },
}

/// What a file that is no kernel seems to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    Empty,
    Folder,
    Device,
    ForeignElf,
    ElfWithoutPvh,
    Gzip,
    Zstd,
    Xz,
    Cpio,
    Script,
    Text,
    Unknown,
}

/// Enough for the magic numbers of every kind.
const HEAD: usize = 0x210;
const MAX_HEADERS: u16 = 128;
const MAX_NOTES: u64 = 64 * 1024;
const XEN_PVH_ENTRY: u32 = 18;

/// Tells which kind of kernel `file` is. `path` is for the error alone. The file's offset does not move.
///
/// # Errors
/// The file cannot be read, or is no kernel; with what it looks like.
pub fn check(file: &File, path: &Path) -> Result<KernelImage, KernelImageError> {
    inspect(file)
        .map_err(|source| KernelImageError::Read {
            path: path.to_owned(),
            source,
        })?
        .map_err(|looks| KernelImageError::NoKernel {
            path: path.to_owned(),
            looks,
        })
}

fn inspect(file: &File) -> io::Result<Result<KernelImage, Looks>> {
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Ok(Err(Looks::Folder));
    }
    if !meta.is_file() {
        return Ok(Err(Looks::Device));
    }
    let head = read(file, 0, HEAD as u64)?;
    if head.starts_with(b"\x7fELF") {
        return elf(file, &head);
    }
    if u16_at(&head, 0x1fe) == Some(0xaa55) && head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Ok(KernelImage::BzImage));
    }
    Ok(Err(looks(&head)))
}

fn elf(file: &File, head: &[u8]) -> io::Result<Result<KernelImage, Looks>> {
    // 64-bit, little-endian, EM_X86_64
    if head.get(4..6) != Some(&[2, 1]) || u16_at(head, 18) != Some(62) {
        return Ok(Err(Looks::ForeignElf));
    }
    let (Some(offset), Some(size), Some(count)) =
        (u64_at(head, 32), u16_at(head, 54), u16_at(head, 56))
    else {
        return Ok(Err(Looks::ElfWithoutPvh));
    };
    let count = count.min(MAX_HEADERS);
    if size < 56 {
        return Ok(Err(Looks::ElfWithoutPvh));
    }
    let headers = read(file, offset, u64::from(size) * u64::from(count))?;
    for header in headers.chunks_exact(usize::from(size)) {
        const PT_NOTE: u32 = 4;
        if u32_at(header, 0) != Some(PT_NOTE) {
            continue;
        }
        let (Some(offset), Some(size)) = (u64_at(header, 8), u64_at(header, 32)) else {
            continue;
        };
        if has_pvh_note(&read(file, offset, size.min(MAX_NOTES))?) {
            return Ok(Ok(KernelImage::Vmlinux));
        }
    }
    Ok(Err(Looks::ElfWithoutPvh))
}

fn has_pvh_note(mut notes: &[u8]) -> bool {
    while let (Some(name_len), Some(desc_len), Some(kind)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        let aligned = |len: u32| usize::try_from(u64::from(len).next_multiple_of(4)).ok();
        let (Some(name), Some(desc)) = (aligned(name_len), aligned(desc_len)) else {
            return false;
        };
        if kind == XEN_PVH_ENTRY && name_len == 4 && notes.get(12..16) == Some(b"Xen\0") {
            return true;
        }
        let next = 12_usize.saturating_add(name).saturating_add(desc);
        match notes.get(next..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

fn looks(head: &[u8]) -> Looks {
    let kinds: [(&[u8], Looks); 6] = [
        (b"\x1f\x8b", Looks::Gzip),
        (b"\x28\xb5\x2f\xfd", Looks::Zstd),
        (b"\xfd7zXZ\0", Looks::Xz),
        (b"07070", Looks::Cpio),
        (b"#!", Looks::Script),
        (b"", Looks::Unknown),
    ];
    if head.is_empty() {
        return Looks::Empty;
    }
    let by_magic = kinds.iter().find(|(magic, _)| head.starts_with(magic));
    match by_magic {
        Some((_, Looks::Unknown)) | None if is_text(head) => Looks::Text,
        Some((_, looks)) => *looks,
        None => Looks::Unknown,
    }
}

fn is_text(head: &[u8]) -> bool {
    // A character may be cut off at the end.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && text.chars().all(|c| !c.is_control() || c.is_whitespace())
}

/// At most `len` bytes from `offset`; fewer at the file's end, none past it.
fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(HEAD)];
    let mut filled = 0;
    while filled < bytes.len() {
        // An offset past what a file can have is past its end.
        let Some(at) = offset
            .checked_add(filled as u64)
            .filter(|at| *at <= i64::MAX as u64)
        else {
            break;
        };
        match file.read_at(&mut bytes[filled..], at) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl fmt::Display for Looks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is empty",
            Self::Folder => "is a folder",
            Self::Device => "is a device, a pipe or a socket",
            Self::ForeignElf => "an ELF file for another machine",
            Self::ElfWithoutPvh => "an ELF file without a PVH note (CONFIG_PVH)",
            Self::Gzip => "gzip data",
            Self::Zstd => "zstd data",
            Self::Xz => "xz data",
            Self::Cpio => "a cpio archive (an initramfs?)",
            Self::Script => "a script",
            Self::Text => "text",
            Self::Unknown => "data of no known kind",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn kind(bytes: &[u8]) -> Result<KernelImage, Looks> {
        inspect(&file(bytes)).unwrap()
    }

    /// An ELF file with one program header and the note that it points to.
    fn vmlinux(machine: u16, note: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&4_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&120_u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&(note.len() as u64).to_le_bytes());
        bytes.extend(note);
        bytes
    }

    fn note(name: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [4, 8, kind] {
            bytes.extend(u32::to_le_bytes(number));
        }
        bytes.extend(name);
        bytes.extend([0; 8]);
        bytes
    }

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; HEAD];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    }

    #[test]
    fn kernels_are_known_by_their_marks() {
        let pvh = note(b"Xen\0", 18);
        assert_eq!(kind(&vmlinux(62, &pvh)), Ok(KernelImage::Vmlinux));
        let behind_another = [note(b"GNU\0", 18), note(b"Xen\0", 7), pvh.clone()].concat();
        assert_eq!(
            kind(&vmlinux(62, &behind_another)),
            Ok(KernelImage::Vmlinux)
        );
        assert_eq!(kind(&bzimage()), Ok(KernelImage::BzImage));
        assert_eq!(kind(&vmlinux(183, &pvh)), Err(Looks::ForeignElf));
        assert_eq!(
            kind(&vmlinux(62, &note(b"GNU\0", 18))),
            Err(Looks::ElfWithoutPvh)
        );
        assert_eq!(kind(&vmlinux(62, &pvh)[..100]), Err(Looks::ElfWithoutPvh));
        assert_eq!(kind(&bzimage()[..0x204]), Err(Looks::Unknown));
    }

    #[test]
    fn another_file_is_named_with_what_it_looks_like() {
        for (bytes, looks) in [
            (&b""[..], Looks::Empty),
            (b"\x1f\x8b\x08", Looks::Gzip),
            (b"070701000", Looks::Cpio),
            (b"#!/bin/sh\n", Looks::Script),
            (b"no such kernel\n", Looks::Text),
            ("na\u{ef}ve".as_bytes(), Looks::Text),
            (b"\0\x01\x02", Looks::Unknown),
        ] {
            assert_eq!(kind(bytes), Err(looks), "{bytes:?}");
        }
        let folder = File::open("/").unwrap();
        let error = check(&folder, Path::new("/srv/kernel"))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/srv/kernel is no kernel"), "{error}");
        assert!(error.ends_with("is a folder"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(
            seed in prop_oneof![Just(Vec::new()), Just(vmlinux(62, &note(b"Xen\0", 18))), Just(bzimage())],
            noise in prop::collection::vec((0_usize..600, any::<u8>()), 0..80),
        ) {
            let mut bytes = seed;
            for (at, byte) in noise {
                if at >= bytes.len() {
                    bytes.resize(at + 1, 0);
                }
                bytes[at] = byte;
            }
            let _ = kind(&bytes);
            let _ = has_pvh_note(&bytes);
        }

        #[test]
        fn offsets_that_point_anywhere_are_answered(
            offset in any::<u64>(), note_offset in any::<u64>(), note_size in any::<u64>(), count in any::<u16>(),
        ) {
            let mut bytes = vmlinux(62, &note(b"Xen\0", 7));
            bytes[56..58].copy_from_slice(&count.to_le_bytes());
            bytes[72..80].copy_from_slice(&note_offset.to_le_bytes());
            bytes[96..104].copy_from_slice(&note_size.to_le_bytes());
            prop_assert_eq!(kind(&bytes), Err(Looks::ElfWithoutPvh));
            bytes[32..40].copy_from_slice(&offset.to_le_bytes());
            prop_assert!(kind(&bytes).is_err());
        }
    }
}
