//! The headers of a tar that is packed: ustar, with extended headers for what they cannot hold, and GNU's map of a sparse
//! file, which all readers know.

use std::io::{self, Write};

use volant_layers::Records;

pub const BLOCK: usize = 512;
/// What the octal digits of a header can hold.
const MOST_ID: u64 = 0o7_777_777;
const MOST_LONG: u64 = 0o77_777_777_777;
const MOST_NAME: usize = 100;
/// So many pieces are in the header of a sparse file, and so many in each block that follows it.
const FIRST_PIECES: usize = 4;
const MORE_PIECES: usize = 21;

/// What an entry is; the byte is its type in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    File = b'0',
    Link = b'1',
    Symlink = b'2',
    CharDevice = b'3',
    BlockDevice = b'4',
    Folder = b'5',
    Fifo = b'6',
    Sparse = b'S',
}

/// What stands in an entry's header.
#[derive(Debug)]
pub struct Head<'a> {
    pub kind: Type,
    pub name: &'a [u8],
    /// The target of a link of either kind.
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds, and nanoseconds after them.
    pub mtime: (i64, u32),
    /// The bytes that follow the header.
    pub stored: u64,
    /// Of a device.
    pub device: (u32, u32),
    /// Names with their namespace, and values.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Of a sparse file: its size, and the offset and length of each piece.
    pub sparse: Option<(u64, &'a [(u64, u64)])>,
}

/// Writes the header of an entry, and the extended one before it.
///
/// # Errors
/// It cannot be written.
pub fn head(out: &mut impl Write, head: &Head<'_>) -> io::Result<()> {
    let records = records(head);
    if !records.bytes().is_empty() {
        let bytes = records.bytes();
        let mut block = plain(b"PaxHeader", b'x', 0o644, bytes.len() as u64);
        finish(&mut block);
        out.write_all(&block)?;
        out.write_all(bytes)?;
        pad(out, bytes.len() as u64)?;
    }
    let mut block = plain(head.name, head.kind as u8, head.mode, head.stored);
    octal(&mut block[108..116], u64::from(head.uid).min(MOST_ID));
    octal(&mut block[116..124], u64::from(head.gid).min(MOST_ID));
    let seconds = u64::try_from(head.mtime.0).unwrap_or(0);
    octal(&mut block[136..148], seconds.min(MOST_LONG));
    put(&mut block[157..257], head.link);
    octal(&mut block[329..337], head.device.0.into());
    octal(&mut block[337..345], head.device.1.into());
    let Some((size, pieces)) = head.sparse else {
        finish(&mut block);
        return out.write_all(&block);
    };
    block[257..265].copy_from_slice(b"ustar  \0");
    let (first, mut rest) = pieces.split_at(pieces.len().min(FIRST_PIECES));
    map(&mut block[386..482], first);
    block[482] = u8::from(!rest.is_empty());
    number(&mut block[483..495], size);
    finish(&mut block);
    out.write_all(&block)?;
    while !rest.is_empty() {
        let mut block = [0; BLOCK];
        let (some, more) = rest.split_at(rest.len().min(MORE_PIECES));
        map(&mut block[..504], some);
        block[504] = u8::from(!more.is_empty());
        out.write_all(&block)?;
        rest = more;
    }
    Ok(())
}

/// Fills the last block of so many bytes.
///
/// # Errors
/// It cannot be written.
pub fn pad(out: &mut impl Write, written: u64) -> io::Result<()> {
    let over = (written % BLOCK as u64) as usize;
    match over {
        0 => Ok(()),
        over => out.write_all(&[0; BLOCK][over..]),
    }
}

/// Ends the archive.
///
/// # Errors
/// It cannot be written.
pub fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// What the plain header cannot hold.
fn records(head: &Head<'_>) -> Records {
    let mut records = Records::default();
    let mut add = |needed: bool, key: &[u8], value: &[u8]| {
        if needed {
            records.add(key, value);
        }
    };
    add(head.name.len() > MOST_NAME, b"path", head.name);
    add(head.link.len() > MOST_NAME, b"linkpath", head.link);
    let text = |number: u64| number.to_string().into_bytes();
    add(
        u64::from(head.uid) > MOST_ID,
        b"uid",
        &text(head.uid.into()),
    );
    add(
        u64::from(head.gid) > MOST_ID,
        b"gid",
        &text(head.gid.into()),
    );
    add(head.stored > MOST_LONG, b"size", &text(head.stored));
    let (seconds, nanos) = head.mtime;
    let is_plain = nanos == 0 && u64::try_from(seconds).is_ok_and(|seconds| seconds <= MOST_LONG);
    add(!is_plain, b"mtime", time(seconds, nanos).as_bytes());
    for (name, value) in head.xattrs {
        add(true, &[b"SCHILY.xattr.", &**name].concat(), value);
    }
    records
}

/// A decimal number; that before the epoch counts its fraction away from it.
fn time(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (seconds, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        _ => format!(
            "-{}.{:09}",
            (seconds + 1).unsigned_abs(),
            1_000_000_000 - nanos.min(999_999_999)
        ),
    }
}

fn plain(name: &[u8], kind: u8, mode: u32, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block[..MOST_NAME], name);
    octal(&mut block[100..108], (mode & 0o7777).into());
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    number(&mut block[124..136], size);
    octal(&mut block[136..148], 0);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

/// The checksum is counted with spaces in its place.
fn finish(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().copied().map(u64::from).sum();
    octal(&mut block[148..155], sum);
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Octal digits and a zero byte; what is too large fills the field.
fn octal(field: &mut [u8], mut value: u64) {
    let Some((last, digits)) = field.split_last_mut() else {
        return;
    };
    *last = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

/// Octal digits, or base 256 as GNU writes what is larger.
fn number(field: &mut [u8], value: u64) {
    if value <= MOST_LONG {
        return octal(field, value);
    }
    let start = field.len() - 8;
    field[..start].fill(0);
    field[0] = 0x80;
    field[start..].copy_from_slice(&value.to_be_bytes());
}

fn map(field: &mut [u8], pieces: &[(u64, u64)]) {
    for (slot, (offset, length)) in field.chunks_exact_mut(24).zip(pieces) {
        number(&mut slot[..12], *offset);
        number(&mut slot[12..], *length);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use volant_layers::{TarReader, What};

    use super::*;

    fn file<'a>(name: &'a [u8], xattrs: &'a [(Vec<u8>, Vec<u8>)]) -> Head<'a> {
        Head {
            kind: Type::File,
            name,
            link: b"",
            mode: 0o4751,
            uid: 5_000_000,
            gid: 7,
            mtime: (-2, 250_000_000),
            stored: 3,
            device: (0, 0),
            xattrs,
            sparse: None,
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let long = [&b"folder/"[..], &[b'n'; 200]].concat();
        let xattrs = [(b"user.a".to_vec(), b"\0\n=".to_vec())];
        let mut bytes = Vec::new();
        head(&mut bytes, &file(&long, &xattrs)).unwrap();
        bytes.extend(b"abc");
        pad(&mut bytes, 3).unwrap();
        end(&mut bytes).unwrap();
        let mut reader = TarReader::new(&bytes[..], u64::MAX);
        let entry = reader.next().unwrap().unwrap();
        assert_eq!(entry.name, long);
        assert_eq!(
            (entry.meta.mode, entry.meta.uid, entry.meta.gid),
            (0o4751, 5_000_000, 7)
        );
        assert_eq!((entry.meta.mtime, entry.nanos), (-2, 250_000_000));
        assert_eq!(*entry.meta.xattrs[&b"user.a"[..]], *b"\0\n=");
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        assert_eq!(content, "abc");
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn holes_are_read_as_they_were_however_many_and_large() {
        for count in [1, 4, 5, 25, 26, 60] {
            let gap = 1 << 35;
            let pieces: Vec<_> = (0..count).map(|piece| (piece * gap, 1)).collect();
            let size = count * gap;
            let mut bytes = Vec::new();
            let sparse = Head {
                kind: Type::Sparse,
                stored: count,
                sparse: Some((size, &pieces)),
                ..file(b"holes", &[])
            };
            head(&mut bytes, &sparse).unwrap();
            bytes.extend(vec![b'x'; count as usize]);
            pad(&mut bytes, count).unwrap();
            end(&mut bytes).unwrap();
            let mut reader = TarReader::new(&bytes[..], u64::MAX);
            let entry = reader.next().unwrap().unwrap();
            assert!(
                matches!(entry.what, What::File { size: found, holes } if found == size && holes == size - count)
            );
            let mut found = Vec::new();
            let mut at = 0;
            while at < size {
                at += reader.skip_hole();
                let mut byte = [0];
                if reader.read(&mut byte).unwrap() == 1 {
                    found.push((at, 1));
                    at += 1;
                }
            }
            assert_eq!(found, pieces);
            assert!(reader.next().unwrap().is_none());
        }
    }
}
