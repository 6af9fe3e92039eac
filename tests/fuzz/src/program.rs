//! Turns bytes into layers: a small language whose every text means some tar streams, so that a fuzzer need not
//! find out by itself what a header's checksum is.
//!
//! The first byte chooses: `t` a tar stream as it stands, its checksums mended; else entries, one after another.

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// No more entries are made, nor longer texts read.
const MAX_ENTRIES: usize = 64;

/// Parts of names; their order is that of the bytes in the corpus.
const PARTS: &[&str] = &[
    "a",
    "b",
    "c",
    "etc",
    "usr",
    "lib",
    "..",
    ".",
    "",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    ".wh.",
    ".wh..wh.plnk",
    "\u{e9}",
    "with space",
];

/// The tar streams that `bytes` mean.
pub(crate) fn layers(bytes: &[u8]) -> Vec<Vec<u8>> {
    if let Some(raw) = bytes.strip_prefix(b"t") {
        return vec![mended(raw)];
    }
    let mut bytes = Bytes(bytes);
    let mut layers = vec![Vec::new()];
    for _ in 0..MAX_ENTRIES {
        let Some(operation) = bytes.next() else {
            break;
        };
        let layer = layers.last_mut().expect("there is one from the start");
        match operation % 16 {
            0..=2 => entry(layer, EntryType::Directory, &mut bytes),
            3 | 4 => entry(layer, EntryType::Regular, &mut bytes),
            5 => entry(layer, EntryType::Symlink, &mut bytes),
            6 => entry(layer, EntryType::Link, &mut bytes),
            7 => entry(layer, EntryType::Char, &mut bytes),
            8 => entry(layer, EntryType::Fifo, &mut bytes),
            9 => extended(layer, EntryType::XHeader, &records(&mut bytes)),
            10 => extended(layer, EntryType::XGlobalHeader, &records(&mut bytes)),
            11 => extended(layer, EntryType::GNULongName, &path(&mut bytes)),
            12 => extended(layer, EntryType::GNULongLink, &path(&mut bytes)),
            13 => entry(layer, EntryType::GNUSparse, &mut bytes),
            14 => {
                let kind = EntryType::new(bytes.next().unwrap_or_default());
                entry(layer, kind, &mut bytes);
            }
            _ => layers.push(Vec::new()),
        }
    }
    for layer in &mut layers {
        layer.extend_from_slice(&[0; 2 * BLOCK]);
    }
    layers
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> usize {
        usize::from(self.next().unwrap_or_default())
    }
}

/// The low bits say how many parts, the high ones whether it is absolute or ends as a folder.
fn path(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let form = bytes.number();
    let mut path = String::new();
    if form & 0x80 != 0 {
        path.push('/');
    }
    for number in 0..(form & 7) {
        if number > 0 {
            path.push('/');
        }
        let part = bytes.number();
        path.push_str(PARTS[part % PARTS.len()]);
        // Names that a header has no room for.
        if part & 0xf0 == 0xf0 {
            path.push_str(&"x".repeat(90));
        }
    }
    if form & 0x40 != 0 {
        path.push('/');
    }
    path.into_bytes()
}

fn entry(layer: &mut Vec<u8>, kind: EntryType, bytes: &mut Bytes<'_>) {
    let name = path(bytes);
    let target = match kind {
        EntryType::Symlink | EntryType::Link => path(bytes),
        _ => Vec::new(),
    };
    let form = bytes.number();
    let size = match kind {
        EntryType::Regular | EntryType::GNUSparse => form,
        _ => 0,
    };
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o7777 & (form as u32 * 0x111));
    header.set_uid(form as u64);
    header.set_gid(0);
    header.set_mtime(form as u64);
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.set_device_major(form as u32);
        gnu.set_device_minor(form as u32 / 3);
        if kind == EntryType::GNUSparse {
            for part in &mut gnu.sparse {
                let (offset, length) = (bytes.number(), bytes.number());
                part.offset[..12].copy_from_slice(format!("{:011o}\0", offset * 64).as_bytes());
                part.numbytes[..12].copy_from_slice(format!("{length:011o}\0").as_bytes());
            }
            let real = bytes.number() * 128;
            gnu.realsize[..12].copy_from_slice(format!("{real:011o}\0").as_bytes());
        }
    }
    put(&mut header.as_old_mut().name, &name);
    put(&mut header.as_old_mut().linkname, &target);
    header.set_cksum();
    layer.extend_from_slice(header.as_bytes());
    content(layer, &vec![b'f'; size]);
}

/// Records of an extended header, each with a length that may be wrong.
fn records(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    for _ in 0..bytes.number() % 4 {
        let form = bytes.number();
        let (key, value): (&str, Vec<u8>) = match form % 12 {
            0 | 1 => ("path", path(bytes)),
            2 | 3 => ("linkpath", path(bytes)),
            4 => ("SCHILY.xattr.user.a", path(bytes)),
            5 => (
                "SCHILY.xattr.security.capability",
                vec![b'\n', 0, form as u8],
            ),
            6 => ("LIBARCHIVE.xattr.user.b", b"YWJj".to_vec()),
            7 => ("size", bytes.number().to_string().into_bytes()),
            8 => ("uid", (bytes.number() << 20).to_string().into_bytes()),
            9 => ("mtime", format!("-{}.5", bytes.number()).into_bytes()),
            10 => ("GNU.sparse.major", b"1".to_vec()),
            _ => (
                "GNU.sparse.realsize",
                bytes.number().to_string().into_bytes(),
            ),
        };
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        if form & 0xf0 == 0xf0 {
            length += 1;
        }
        records.extend_from_slice(format!("{length} {key}=").as_bytes());
        records.extend_from_slice(&value);
        records.push(b'\n');
    }
    records
}

fn extended(layer: &mut Vec<u8>, kind: EntryType, bytes: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    layer.extend_from_slice(header.as_bytes());
    content(layer, bytes);
}

fn content(layer: &mut Vec<u8>, bytes: &[u8]) {
    layer.extend_from_slice(bytes);
    layer.resize(layer.len().next_multiple_of(BLOCK), 0);
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Gives each block that looks like a header the checksum that it must have.
fn mended(raw: &[u8]) -> Vec<u8> {
    let mut stream = raw.to_vec();
    for block in stream.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    stream
}
