//! Which file system a disk has, by its first bytes. Pure.

use std::{fmt, str::FromStr};

/// How much of a disk's begin has every magic number.
pub const HEAD: u64 = 4096;

/// A file system that can be a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Squashfs,
    Erofs,
    Ext4,
}

impl Format {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }

    /// The mount options of a disk that nobody may write to, whatever its superblock says.
    #[must_use]
    pub fn options(self) -> &'static str {
        match self {
            Self::Squashfs | Self::Erofs => "",
            // A journal that was not closed cannot be replayed; an error must not be the guest's panic.
            Self::Ext4 => "noload,errors=continue",
        }
    }

    /// The file system that begins with `head`.
    #[must_use]
    pub fn detect(head: &[u8]) -> Option<Self> {
        const MAGIC: &[(usize, &[u8], Format)] = &[
            (0, b"hsqs", Format::Squashfs),
            (1024, &[0xe2, 0xe1, 0xf5, 0xe0], Format::Erofs),
            (1024 + 56, &[0x53, 0xef], Format::Ext4),
        ];
        MAGIC
            .iter()
            .find(|(at, magic, _)| has(head, *at, magic))
            .map(|(_, _, format)| *format)
    }
}

impl FromStr for Format {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Squashfs, Self::Erofs, Self::Ext4]
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or(())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a disk without a file system for a root seems to have, for people.
#[must_use]
pub fn looks(head: &[u8]) -> &'static str {
    const KNOWN: &[(usize, &[u8], &str)] = &[
        (0, b"\x1f\x8b", "what gzip compressed"),
        (0, b"\x28\xb5\x2f\xfd", "what zstd compressed"),
        (0, b"\xfd7zXZ\0", "what xz compressed"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"070701", "a cpio archive"),
        (0, b"sqsh", "squashfs of the other byte order"),
        (257, b"ustar", "a tar archive"),
        (0x1fe, &[0x55, 0xaa], "a partition table"),
    ];
    if head.is_empty() {
        return "nothing at all";
    }
    if head.iter().all(|byte| *byte == 0) {
        return "zeros";
    }
    KNOWN
        .iter()
        .find(|(at, magic, _)| has(head, *at, magic))
        .map_or("nothing that is known", |(_, _, words)| *words)
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 2048];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn file_systems_are_told_apart() {
        let cases = [
            (head(0, b"hsqs"), Some(Format::Squashfs)),
            (
                head(1024, &0xe0f5_e1e2_u32.to_le_bytes()),
                Some(Format::Erofs),
            ),
            (head(1080, &0xef53_u16.to_le_bytes()), Some(Format::Ext4)),
            (head(0, b"XFSB"), None),
            (b"hsq".to_vec(), None),
            (vec![], None),
        ];
        for (head, expected) in cases {
            assert_eq!(Format::detect(&head), expected);
        }
        for format in [Format::Squashfs, Format::Erofs, Format::Ext4] {
            assert_eq!(format.as_str().parse(), Ok(format));
        }
        assert_eq!("raw".parse::<Format>(), Err(()));
    }

    #[test]
    fn what_is_no_root_is_told_in_words() {
        for (head, expected) in [
            (head(0, b"\x1f\x8b"), "what gzip compressed"),
            (head(257, b"ustar"), "a tar archive"),
            (head(0x1fe, &[0x55, 0xaa]), "a partition table"),
            (head(7, b"x"), "nothing that is known"),
            (vec![0; 512], "zeros"),
            (vec![], "nothing at all"),
        ] {
            assert_eq!(looks(&head), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(head in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = Format::detect(&head);
            let _ = looks(&head);
        }
    }
}
