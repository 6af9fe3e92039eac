//! A FAT12 file system with a few files in its root folder, written whole. Pure.
//!
//! ```text
//! boot sector │ table │ table │ root folder │ clusters: each file's, one after the other
//! ```
//! It is read only, so it is as small as its files: they are never fragmented, and their short names need only differ.

use std::io;

const SECTOR: usize = 512;
/// Of the root folder, in entries of 32 bytes: one sector's.
const ENTRIES: usize = 16;
/// More clusters would be another FAT.
const MOST_CLUSTERS: usize = 4084;
/// The characters of a long name that one entry has.
const PIECE: usize = 13;
const MEDIA: u8 = 0xf8;
const LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;
const READ_ONLY: u8 = 0x01;
/// The first of January 1980, the oldest day there is: an image tells nothing of when it was made.
const DATE: u16 = 0x0021;

/// The file system that has `files`, by ASCII names of at most 26 characters, under a label of at most 11.
///
/// # Errors
/// The files are too many or too large.
pub(super) fn image(label: &str, files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the documents are too large");
    let sectors_per_cluster = (0..7)
        .map(|power| 1_u8 << power)
        .find(|sectors| clusters(files, *sectors) <= MOST_CLUSTERS)
        .ok_or_else(too_large)?;
    let cluster = usize::from(sectors_per_cluster) * SECTOR;
    let clusters = clusters(files, sectors_per_cluster).max(1);
    let table = table(files, cluster);
    let table_sectors = table.len().div_ceil(SECTOR).max(1);
    let data = SECTOR * (1 + 2 * table_sectors + 1);
    let total = data / SECTOR + clusters * usize::from(sectors_per_cluster);

    let mut image = vec![0; total * SECTOR];
    let boot =
        boot_sector(label, sectors_per_cluster, table_sectors, total).ok_or_else(too_large)?;
    image[..SECTOR].copy_from_slice(&boot);
    for copy in 0..2 {
        let at = SECTOR * (1 + copy * table_sectors);
        image[at..at + table.len()].copy_from_slice(&table);
    }
    let folder = folder(label, files, cluster).ok_or_else(too_large)?;
    let at = data - SECTOR;
    image[at..at + folder.len()].copy_from_slice(&folder);
    let mut at = data;
    for (_, bytes) in files {
        image[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len().div_ceil(cluster) * cluster;
    }
    Ok(image)
}

fn clusters(files: &[(&str, &[u8])], sectors: u8) -> usize {
    let cluster = usize::from(sectors) * SECTOR;
    let of = |(_, bytes): &(&str, &[u8])| bytes.len().div_ceil(cluster);
    files.iter().map(of).sum()
}

fn boot_sector(label: &str, per_cluster: u8, table: usize, total: usize) -> Option<[u8; SECTOR]> {
    let mut boot = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| boot[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"VOLANT  ");
    put(11, &u16::try_from(SECTOR).ok()?.to_le_bytes());
    put(13, &[per_cluster]);
    // The boot sector alone is reserved; two tables.
    put(14, &[1, 0, 2]);
    put(17, &u16::try_from(ENTRIES).ok()?.to_le_bytes());
    match u16::try_from(total) {
        Ok(total) => put(19, &total.to_le_bytes()),
        Err(_) => put(32, &u32::try_from(total).ok()?.to_le_bytes()),
    }
    put(21, &[MEDIA]);
    put(22, &u16::try_from(table).ok()?.to_le_bytes());
    // A geometry that nothing uses, but some readers want.
    put(24, &[32, 0, 2, 0]);
    // The first hard disk; the fields after it are there; a number of the volume.
    put(36, &[0x80, 0, 0x29]);
    put(39, b"VLNT");
    put(43, &padded::<11>(label));
    put(54, b"FAT12   ");
    put(510, &[0x55, 0xaa]);
    Some(boot)
}

/// Entries of 12 bits: which cluster comes after each, `0xfff` after the last.
fn table(files: &[(&str, &[u8])], cluster: usize) -> Vec<u8> {
    let mut next: Vec<u16> = vec![0xf00 | u16::from(MEDIA), 0xfff];
    for (_, bytes) in files {
        let count = bytes.len().div_ceil(cluster);
        for left in (0..count).rev() {
            let after = u16::try_from(next.len() + 1).unwrap_or(0xfff);
            next.push(if left == 0 { 0xfff } else { after });
        }
    }
    let mut table = Vec::with_capacity(next.len() * 3 / 2 + 2);
    for pair in next.chunks(2) {
        let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
        let [low, high] = first.to_le_bytes();
        table.push(low);
        table.push(high | second.to_le_bytes()[0] << 4);
        table.push((second >> 4).to_le_bytes()[0]);
    }
    table
}

fn folder(label: &str, files: &[(&str, &[u8])], cluster: usize) -> Option<Vec<u8>> {
    let mut entries = vec![entry(padded(label), LABEL, 0, 0)];
    let mut first = 2;
    for (number, (name, bytes)) in files.iter().enumerate() {
        let short = padded(&format!("FILE{number}"));
        entries.extend(long_name(name, &short));
        let count = bytes.len().div_ceil(cluster);
        // An empty file has no cluster.
        let start = if count == 0 {
            0
        } else {
            u16::try_from(first).ok()?
        };
        entries.push(entry(
            short,
            READ_ONLY,
            start,
            u32::try_from(bytes.len()).ok()?,
        ));
        first += count;
    }
    // One is left free: it ends the folder.
    (entries.len() < ENTRIES).then(|| entries.concat())
}

fn entry(name: [u8; 11], attributes: u8, first: u16, size: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(&name);
    entry[11] = attributes;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    entry[28..].copy_from_slice(&size.to_le_bytes());
    entry
}

/// The entries before a short name that have the long one, the last piece first.
fn long_name(name: &str, short: &[u8; 11]) -> Vec<[u8; 32]> {
    /// Where an entry has its characters.
    const PLACES: [usize; PIECE] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    let sum = short
        .iter()
        .fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let characters: Vec<u16> = name.encode_utf16().collect();
    let pieces = characters.chunks(PIECE).zip(1_u8..);
    let last = u8::try_from(characters.len().div_ceil(PIECE)).unwrap_or(0);
    let mut entries: Vec<_> = pieces
        .map(|(piece, number)| {
            let mut entry = [0; 32];
            entry[0] = if number == last {
                number | 0x40
            } else {
                number
            };
            entry[11] = LONG_NAME;
            entry[13] = sum;
            // What ends before the entry does is ended by zero, then filled up.
            let filler = [0].into_iter().chain(std::iter::repeat(0xffff));
            for (place, character) in PLACES.iter().zip(piece.iter().copied().chain(filler)) {
                entry[*place..place + 2].copy_from_slice(&character.to_le_bytes());
            }
            entry
        })
        .collect();
    entries.reverse();
    entries
}

fn padded<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    let mut padded = [b' '; LENGTH];
    for (place, byte) in padded.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    padded
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command};

    use super::*;

    fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    fn check(folder: &Path, files: &[(&str, &[u8])]) {
        let path = folder.join("image");
        fs::write(&path, image("CIDATA", files).unwrap()).unwrap();
        let path = path.to_str().unwrap();
        run("fsck.vfat", &["-n", path]);
        let told = run("blkid", &["--probe", "--output", "export", path]);
        let told = String::from_utf8_lossy(&told);
        for expected in ["LABEL=CIDATA\n", "TYPE=vfat\n", "VERSION=FAT12\n"] {
            assert!(told.contains(expected), "{told}");
        }
        for (name, bytes) in files {
            let read = run("mtype", &["-i", path, &format!("::{name}")]);
            assert!(read == *bytes, "{name} is not what was written");
        }
    }

    #[test]
    fn other_readers_find_the_files_that_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let large: Vec<u8> = (0..300_000_u32)
            .map(|n| n.to_le_bytes()[0] ^ 0x5a)
            .collect();
        let huge = vec![7; 9_000_000];
        let cases: [&[(&str, &[u8])]; 5] = [
            &[],
            &[("user-data", b"")],
            &[("meta-data", b"a: b\n"), ("network-config", &[b'x'; 512])],
            &[
                ("meta-data", b"a: b\n"),
                ("network-config", b""),
                ("user-data", &large),
                ("vendor-data", &[b'y'; 513]),
            ],
            &[("user-data", &huge), ("meta-data", b"last")],
        ];
        for files in cases {
            check(folder.path(), files);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let name = "a-name-of-two-entries";
        let files = [(name, b"".as_slice()); 5];
        let error = image("CIDATA", &files).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
