//! Where each file of a tar lies, so that an archive is read in place.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use tar::{EntryType, Header};

use crate::blob::{Extent, compression};

const BLOCK: u64 = 512;
const MAX_ENTRIES: usize = 65_536;
const MAX_NAME: u64 = 64 * 1024;
const MAX_LINKS: usize = 8;

/// The files of a tar, by name without a leading `./`.
#[derive(Debug)]
pub(crate) struct TarIndex {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File { offset: u64, size: u64 },
    Link { target: String },
}

/// What a long name or a pax header says of the entry after it.
#[derive(Default)]
struct Overrides {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl TarIndex {
    /// Goes through the headers of `path`; the contents are not read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(8192, File::open(path)?);
        let length = reader.get_ref().metadata()?.len();
        let mut entries = BTreeMap::new();
        let mut overrides = Overrides::default();
        let mut at = 0;
        while at + BLOCK <= length {
            let mut header = Header::new_old();
            reader.read_exact(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                break;
            }
            check(&header, at == 0)?;
            let offset = at + BLOCK;
            let kind = header.entry_type();
            let size = match overrides.size.filter(|_| !is_extension(kind)) {
                Some(size) => size,
                None => header.entry_size()?,
            };
            let next = size
                .checked_next_multiple_of(BLOCK)
                .and_then(|padded| offset.checked_add(padded))
                .filter(|_| size <= length.saturating_sub(offset))
                .ok_or_else(|| bad("an entry is longer than the archive"))?;
            if is_extension(kind) {
                extend(&mut overrides, kind, &mut reader, size)?;
            } else {
                let all = std::mem::take(&mut overrides);
                if entries.len() >= MAX_ENTRIES {
                    return Err(bad("it has more entries than an archive of images has"));
                }
                if let Some((name, entry)) = entry(&header, kind, all, offset, size) {
                    entries.insert(name, entry);
                }
            }
            reader.seek(SeekFrom::Start(next))?;
            at = next;
        }
        Ok(Self {
            path: path.to_owned(),
            entries,
        })
    }

    /// Where the file `name` lies; links within the archive are followed.
    pub fn file(&self, name: &str) -> io::Result<Extent> {
        let mut name = clean(name).ok_or_else(|| bad("a name in it leads out of the archive"))?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&name) {
                Some(Entry::File { offset, size }) => {
                    return Ok(Extent {
                        path: self.path.clone(),
                        offset: *offset,
                        size: *size,
                    });
                }
                Some(Entry::Link { target }) => name.clone_from(target),
                None => {
                    let shown: String = name
                        .chars()
                        .take(200)
                        .flat_map(char::escape_debug)
                        .collect();
                    let message = format!("there is no '{shown}' in the archive");
                    return Err(io::Error::new(io::ErrorKind::NotFound, message));
                }
            }
        }
        Err(bad("its links go round in circles"))
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
}

fn check(header: &Header, first: bool) -> io::Result<()> {
    let bytes = header.as_bytes();
    let sum = bytes[..148].iter().chain(&bytes[156..]);
    let sum: u32 = sum.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    if header.cksum().ok() == Some(sum) {
        return Ok(());
    }
    Err(match compression(bytes).filter(|_| first) {
        Some(name) => bad(&format!(
            "it is compressed with {name}: decompress it first ({name} -d FILE)"
        )),
        None if first => bad("it is no tar"),
        None => bad("an entry's header is damaged"),
    })
}

fn is_extension(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName
            | EntryType::GNULongLink
            | EntryType::XHeader
            | EntryType::XGlobalHeader
    )
}

fn extend(
    overrides: &mut Overrides,
    kind: EntryType,
    reader: &mut impl Read,
    size: u64,
) -> io::Result<()> {
    if size > MAX_NAME {
        return Err(bad("a name in it is too long"));
    }
    let mut text = Vec::new();
    reader.take(size).read_to_end(&mut text)?;
    match kind {
        EntryType::GNULongName => overrides.name = Some(until_nul(text)),
        EntryType::GNULongLink => overrides.link = Some(until_nul(text)),
        EntryType::XHeader => {
            let damaged = || bad("a pax header in it is damaged");
            let mut rest = text.as_slice();
            while !rest.is_empty() {
                let (key, value, after) = record(rest).ok_or_else(damaged)?;
                rest = after;
                match key {
                    b"path" => overrides.name = Some(value.to_vec()),
                    b"linkpath" => overrides.link = Some(value.to_vec()),
                    b"size" => {
                        let size = std::str::from_utf8(value).ok();
                        let size = size.and_then(|text| text.parse().ok());
                        overrides.size = Some(size.ok_or_else(damaged)?);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// The first `LENGTH KEY=VALUE\n` of a pax header, and what comes after it. A value may be any bytes.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    let (record, after) = text.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], after))
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

/// What is kept of an entry: files, and links that stay inside. Others are not what archives of images are made of.
fn entry(
    header: &Header,
    kind: EntryType,
    overrides: Overrides,
    offset: u64,
    size: u64,
) -> Option<(String, Entry)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let name = clean(&text(
        overrides
            .name
            .unwrap_or_else(|| header.path_bytes().into_owned()),
    )?)?;
    let link = || {
        let own = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
        text(overrides.link.or_else(own)?)
    };
    let entry = match kind {
        EntryType::Regular | EntryType::Continuous => Entry::File { offset, size },
        EntryType::Link => Entry::Link {
            target: clean(&link()?)?,
        },
        EntryType::Symlink => {
            let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
            let target = resolve(dir, &link()?)?;
            Entry::Link { target }
        }
        _ => return None,
    };
    Some((name, entry))
}

/// A name without `.` parts; `None` if it is absolute or has a `..`.
fn clean(name: &str) -> Option<String> {
    if name.starts_with('/') || name.split('/').any(|part| part == "..") {
        return None;
    }
    resolve("", name)
}

/// Follows `link` from `dir`; `None` if that leads out.
fn resolve(dir: &str, link: &str) -> Option<String> {
    if link.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn index(bytes: &[u8]) -> io::Result<TarIndex> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut index = TarIndex::open(file.path())?;
        index.path = file.into_temp_path().keep().unwrap();
        Ok(index)
    }

    fn builder() -> tar::Builder<Vec<u8>> {
        tar::Builder::new(Vec::new())
    }

    fn add(tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    }

    fn link(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, target: &str) {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(kind);
        tar.append_link(&mut header, name, target).unwrap();
    }

    #[test]
    fn files_are_found_by_name_also_by_long_ones_and_links() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        let mut tar = builder();
        add(&mut tar, "a.json", b"first");
        add(&mut tar, &long, &[7; 1500]);
        link(&mut tar, EntryType::Symlink, "x/layer.tar", "../a.json");
        link(&mut tar, EntryType::Link, "hard", &long);
        let odd = ("SCHILY.xattr.user.a", b"\n=\0".as_slice());
        tar.append_pax_extensions([odd, ("path", b"named-by-pax".as_slice())])
            .unwrap();
        add(&mut tar, "short", b"pax");
        let index = index(&tar.into_inner().unwrap()).unwrap();
        let read = |name: &str| index.file(name).unwrap().read(10_000).unwrap();
        assert_eq!(read("./a.json"), b"first");
        assert_eq!(read("x/layer.tar"), b"first");
        assert_eq!(read(&long), [7; 1500]);
        assert_eq!(read("hard"), [7; 1500]);
        assert_eq!(read("named-by-pax"), b"pax");
        assert!(!index.contains("short"));
        std::fs::remove_file(&index.path).unwrap();
    }

    #[test]
    fn what_leads_out_or_round_is_refused() {
        let mut tar = builder();
        link(&mut tar, EntryType::Symlink, "out", "../../etc/passwd");
        link(&mut tar, EntryType::Symlink, "root", "/etc/passwd");
        link(&mut tar, EntryType::Symlink, "a", "b");
        link(&mut tar, EntryType::Symlink, "b", "a");
        let index = index(&tar.into_inner().unwrap()).unwrap();
        for name in ["out", "root", "../etc/passwd", "/etc/passwd", "a", ""] {
            assert!(index.file(name).is_err(), "{name}");
        }
        std::fs::remove_file(&index.path).unwrap();
    }

    #[test]
    fn what_is_no_tar_says_what_it_is() {
        let mut compressed = vec![0x1f, 0x8b];
        compressed.resize(2048, 1);
        for (bytes, word) in [(vec![b'x'; 2048], "no tar"), (compressed, "gzip -d FILE")] {
            let error = index(&bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_size_past_the_end_is_refused() {
        let mut tar = builder();
        tar.append_pax_extensions([("size", u64::MAX.to_string().as_bytes())])
            .unwrap();
        add(&mut tar, "a", b"x");
        let error = index(&tar.into_inner().unwrap()).unwrap_err().to_string();
        assert!(error.contains("longer than the archive"), "{error}");
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_panics(at in 0_usize..3072, byte in any::<u8>()) {
            let mut tar = builder();
            tar.append_pax_extensions([("path", b"p".as_slice())]).unwrap();
            add(&mut tar, "a", b"x");
            let mut bytes = tar.into_inner().unwrap();
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            if let Ok(index) = index(&bytes) {
                std::fs::remove_file(&index.path).unwrap();
            }
        }
    }
}
