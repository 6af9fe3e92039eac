//! PAX extended headers: records of `LENGTH KEY=VALUE\n` that describe the next entry, or all that follow.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};

use super::number::{decimal, time};
use crate::Xattrs;

/// What Linux lets an inode have.
const MAX_XATTRS: usize = 64 * 1024;
const MAX_XATTR_NAME: usize = 255;
/// Labels of the machine that made the layer; they mean nothing elsewhere, and no one may set them there.
const FOREIGN_XATTRS: [&[u8]; 2] = [b"security.selinux", b"system.nfs4_acl"];

/// What extended headers say of an entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Seconds, and nanoseconds after them.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Xattrs,
    pub sparse: Option<SparsePax>,
}

/// The `GNU.sparse.` records.
#[derive(Clone, Debug, Default)]
pub(super) struct SparsePax {
    /// The map is at the start of the content: version 1.0.
    pub in_content: bool,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    /// Offsets and lengths in turn.
    pub map: Vec<u64>,
}

impl Pax {
    /// Adds the records of one extended header; a record replaces an older one of its key. Of a `global`
    /// one, the owner and the time are taken; the rest can only be meant for a single entry.
    pub fn add(&mut self, mut records: &[u8], global: bool) -> Result<(), &'static str> {
        while !records.is_empty() {
            let (key, value, rest) = record(records).ok_or("is damaged")?;
            records = rest;
            self.set(key, value, global)?;
        }
        let xattrs: usize = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if xattrs > MAX_XATTRS {
            return Err("has more than 64 KiB of extended attributes");
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], global: bool) -> Result<(), &'static str> {
        // An empty value takes back what an earlier header said.
        let given = !value.is_empty();
        match key {
            b"uid" => self.uid = given.then(|| owner(value)).transpose()?,
            b"gid" => self.gid = given.then(|| owner(value)).transpose()?,
            b"mtime" => {
                let time = || time(value).ok_or("has a time that is no number");
                self.mtime = given.then(time).transpose()?;
            }
            _ if global => {}
            _ if key.starts_with(b"SCHILY.xattr.") => {
                self.xattr(&key[b"SCHILY.xattr.".len()..], value)?;
            }
            _ if key.starts_with(b"LIBARCHIVE.xattr.") => {
                let name = percent_decoded(&key[b"LIBARCHIVE.xattr.".len()..]);
                let value = value.trim_ascii_end();
                let end = value
                    .iter()
                    .rposition(|byte| *byte != b'=')
                    .map_or(0, |at| at + 1);
                let value = STANDARD_NO_PAD
                    .decode(&value[..end])
                    .map_err(|_| "has an extended attribute that is no base64")?;
                self.xattr(&name, &value)?;
            }
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => {
                let size = || decimal(value).ok_or("has a size that is no number");
                self.size = given.then(size).transpose()?;
            }
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn sparse(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("has a sparse map that is damaged");
        let sparse = self.sparse.get_or_insert_default();
        match key {
            b"major" => match number()? {
                0 => {}
                1 => sparse.in_content = true,
                _ => return Err("has a sparse map of an unknown version"),
            },
            b"minor" if sparse.in_content && value != b"0" => {
                return Err("has a sparse map of an unknown version");
            }
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => sparse.size = Some(number()?),
            b"offset" | b"numbytes" => {
                // They come in turn.
                if (key == b"offset") != sparse.map.len().is_multiple_of(2) {
                    return Err("has a sparse map that is damaged");
                }
                sparse.map.push(number()?);
            }
            b"map" => {
                sparse.map = value
                    .split(|byte| *byte == b',')
                    .filter(|_| !value.is_empty())
                    .map(decimal)
                    .collect::<Option<_>>()
                    .ok_or("has a sparse map that is damaged")?;
            }
            _ => {}
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if FOREIGN_XATTRS.contains(&name) {
            return Ok(());
        }
        if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
            return Err("has an extended attribute with a name that Linux does not take");
        }
        self.xattrs.insert(name.into(), value.into());
        Ok(())
    }
}

/// Splits off the first record: key, value and the rest.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&records[..space])?).ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty()).then_some((key, value, rest))
}

fn owner(value: &[u8]) -> Result<u32, &'static str> {
    decimal(value)
        .and_then(|id| u32::try_from(id).ok())
        .ok_or("has an owner that is no number below 2^32")
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let hex = (*first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(records: &[u8]) -> Result<Pax, &'static str> {
        let mut pax = Pax::default();
        pax.add(records, false).map(|()| pax)
    }

    #[test]
    fn values_may_hold_any_byte() {
        let pax = parse(b"28 SCHILY.xattr.user.a=\n\0=\n\n12 path=a\nb\n").unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"\n\0=\n"[..].into());
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
    }

    #[test]
    fn attributes_of_libarchive_are_decoded() {
        let pax = parse(b"37 LIBARCHIVE.xattr.user.a%20b%=YWI=\n").unwrap();
        assert_eq!(pax.xattrs[&b"user.a b%"[..]], b"ab"[..].into());
    }

    #[test]
    fn labels_of_another_machine_are_left() {
        let pax = parse(b"35 SCHILY.xattr.security.selinux=a\n").unwrap();
        assert!(pax.xattrs.is_empty());
    }

    #[test]
    fn an_empty_value_takes_back_what_was_said() {
        let pax = parse(b"9 path=a\n8 path=\n9 uid=12\n7 uid=\n").unwrap();
        assert_eq!((pax.path, pax.uid), (None, None));
    }

    #[test]
    fn damaged_records_are_refused() {
        let cases: [&[u8]; 12] = [
            b"path=a\n",
            b"9 path=a",
            b"11 path=a\n",
            b"8 path=a\n",
            b"0 path=a\n",
            b"99999999999999999999 path=a\n",
            b"7 path\n",
            b"5 =a\n",
            b"9 uid=-1\n",
            b"18 uid=4294967296\n",
            b"9 size=x\n",
            b"25 GNU.sparse.numbytes=1\n",
        ];
        for records in cases {
            assert!(parse(records).is_err(), "{}", records.escape_ascii());
        }
        let large = [b"65570 SCHILY.xattr.user.a=", &[b'a'; 65543][..], b"\n"].concat();
        assert_eq!(
            parse(&large).unwrap_err(),
            "has more than 64 KiB of extended attributes"
        );
    }
}
