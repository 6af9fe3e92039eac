//! The sizes of an ext4 file system: groups, their inodes, and what each keeps for itself.

use super::{BLOCK, INODE};

/// What the bitmap of one block can tell.
pub(super) const GROUP: u64 = 8 * BLOCK;
const DESCRIPTOR: u64 = 32;
/// So many blocks of data in the last group, or there is no such group.
const LEAST: u64 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// All blocks.
    pub blocks: u64,
    pub groups: u64,
    pub inodes_per_group: u64,
}

impl Geometry {
    /// A file system of at most that many blocks with at least that many inodes, if there can be one.
    pub(super) fn new(blocks: u64, inodes: u64) -> Option<Self> {
        let mut blocks = blocks.min(u64::from(u32::MAX));
        loop {
            let groups = blocks.div_ceil(GROUP);
            let per_block = BLOCK / INODE;
            let inodes_per_group = inodes.div_ceil(groups.max(1)).next_multiple_of(per_block);
            let geometry = Self {
                blocks,
                groups,
                inodes_per_group,
            };
            if groups == 0 || inodes_per_group > GROUP {
                return None;
            }
            let last = groups - 1;
            if geometry.end(last) >= geometry.first_data(last) + LEAST {
                return Some(geometry);
            }
            blocks = last * GROUP;
        }
    }

    /// Whether a group has a copy of the superblock: powers of 3, 5 and 7.
    pub(super) fn has_superblock(group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1 || [3, 5, 7].into_iter().any(is_power)
    }

    pub(super) fn descriptor_blocks(&self) -> u64 {
        (self.groups * DESCRIPTOR).div_ceil(BLOCK)
    }

    pub(super) fn inode_blocks(&self) -> u64 {
        self.inodes_per_group * INODE / BLOCK
    }

    pub(super) fn start(group: u64) -> u64 {
        group * GROUP
    }

    /// The block after a group's last.
    pub(super) fn end(&self, group: u64) -> u64 {
        self.blocks.min(Self::start(group + 1))
    }

    /// The bitmap of a group's blocks; that of its inodes and the inodes themselves follow.
    pub(super) fn bitmap(&self, group: u64) -> u64 {
        let copy = if Self::has_superblock(group) {
            1 + self.descriptor_blocks()
        } else {
            0
        };
        Self::start(group) + copy
    }

    pub(super) fn inode_table(&self, group: u64) -> u64 {
        self.bitmap(group) + 2
    }

    /// A group's first block for data.
    pub(super) fn first_data(&self, group: u64) -> u64 {
        self.inode_table(group) + self.inode_blocks()
    }

    pub(super) fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_in_few_groups() {
        let copies: Vec<u64> = (0..130)
            .filter(|group| Geometry::has_superblock(*group))
            .collect();
        assert_eq!(copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn a_last_group_that_would_hold_next_to_nothing_is_not_there() {
        let whole = Geometry::new(2 * GROUP, 100).unwrap();
        assert_eq!(
            Geometry::new(2 * GROUP + 20, 100).unwrap().blocks,
            2 * GROUP
        );
        assert_eq!(whole.groups, 2);
        assert!(Geometry::new(10, 100).is_none());
        assert!(Geometry::new(0, 1).is_none());
        assert!(Geometry::new(GROUP, GROUP + 1).is_none());
    }
}
