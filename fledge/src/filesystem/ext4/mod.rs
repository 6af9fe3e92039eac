//! Ext4 without a journal and without checksums: to be mounted read-only by every Linux, or written to later.
//!
//! Blocks and inodes are taken in order, so what is used of each group is its beginning: first its copy of the
//! superblock, its bitmaps and inodes, then data. [`Geometry`] has the sizes, [`Layout`] says what goes where,
//! and `write` puts it there.

mod attributes;
mod geometry;
mod layout;
mod write;

pub(super) use layout::{Error, Layout};

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// Inodes that are not for files; the root and lost+found are among them.
const RESERVED: u64 = 10;
const ROOT: u32 = 2;
/// Where the checker puts what it finds; it is unhappy without.
const LOST_AND_FOUND: &[u8] = b"lost+found";

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use volant_layers::{Content, Inode, Tree};

    use super::*;
    use crate::filesystem::plan::Plan;

    #[test]
    fn files_whose_extents_need_a_tree_are_well_formed() {
        // The first needs one level, the second two; nothing reads what is in them.
        let mut tree = Tree::new();
        for (path, gibibytes) in [("/a", 3), ("/b", 200), ("/c", 0)] {
            let content = Content::File {
                path: "never read".into(),
                size: (gibibytes << 30) + 1,
            };
            tree.insert(Path::new(path), Inode::file(0o600, content))
                .unwrap();
        }
        let plan = Plan::new(&tree);
        let layout = Layout::new(&plan, None).unwrap();
        assert!(layout.places[1].tree.len() == 1 && layout.places[2].tree.len() > 2);
        let image = tempfile::NamedTempFile::new().unwrap();
        layout.write(image.as_file()).unwrap();
        let checked = Command::new("e2fsck")
            .arg("-fn")
            .arg(image.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{said}");
        let length: u64 = layout.place(2).iter().map(|span| span.length).sum();
        assert_eq!(length, (200 << 30) + 1);
    }
}
