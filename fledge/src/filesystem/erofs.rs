//! Erofs, uncompressed: what Linux since 5.4 mounts read-only, its pages mapped straight from the image.
//!
//! Block 0 has the superblock; inodes with their attributes and the ends of their data follow; then whole blocks
//! of data. An inode with what follows it stays within a block wherever it fits into one.

use std::{fs::File, io, os::unix::fs::FileExt};

use volant_layers::Kind;

use super::{
    attributes::{Attribute, attributes},
    plan::{Node, Plan, Span, Unfit, device, entry_type, put, type_bits},
};

const BLOCK: u64 = 4096;
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Inodes are named by their offset in these.
const SLOT: u64 = 32;
const INODE: u64 = 64;
const ENTRY: u64 = 12;
/// Data in whole blocks; data of which the end follows the inode.
const PLAIN: u16 = 0;
const INLINE: u16 = 2;

/// An image that is decided, without the contents of files.
pub(super) struct Layout<'a> {
    plan: &'a Plan<'a>,
    places: Vec<Place>,
    blocks: u64,
    pub(super) warnings: Vec<String>,
}

struct Place {
    /// Of the inode, in bytes.
    offset: u64,
    attributes: Vec<Attribute>,
    /// All bytes of a file, a link's target or a folder's entries.
    size: u64,
    /// The first block of data, if there is one.
    block: u64,
    /// The bytes in blocks; those that are left follow the inode and its attributes.
    in_blocks: u64,
}

impl<'a> Layout<'a> {
    pub(super) fn new(plan: &'a Plan<'a>) -> Result<Self, Unfit> {
        let mut warnings = Vec::new();
        let mut places: Vec<Place> = Vec::with_capacity(plan.nodes.len());
        let mut end = BLOCK;
        for (number, node) in plan.nodes.iter().enumerate() {
            let size = match &node.inode.kind {
                Kind::Directory => {
                    let names = entries(node, number)
                        .into_iter()
                        .map(|(name, _)| name.len());
                    folder_size(names)
                }
                Kind::Symlink(target) => target.len() as u64,
                _ => node.inode.size(),
            };
            if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } =
                node.inode.kind
            {
                device(major, minor).map_err(|why| (number, why))?;
            }
            let attributes = attributes(node.path, &node.inode.meta.xattrs, &mut warnings);
            let head = INODE + attributes_size(&attributes);
            let tail = size % BLOCK;
            let (whole, tail) = if head + tail <= BLOCK {
                (head + tail, tail)
            } else {
                (head, 0)
            };
            // Many attributes may go over several blocks; the inode itself may not.
            let room = BLOCK - end % BLOCK;
            if whole.min(BLOCK) > room {
                end += room;
            }
            places.push(Place {
                offset: end,
                attributes,
                size,
                block: 0,
                in_blocks: size - tail,
            });
            end = (end + whole).next_multiple_of(SLOT);
        }
        let mut block = end.div_ceil(BLOCK);
        for (number, place) in places.iter_mut().enumerate() {
            if place.in_blocks > 0 {
                place.block = block;
            }
            block += place.in_blocks.div_ceil(BLOCK);
            if block >= u64::from(u32::MAX) {
                return Err((number, "the image would be larger than 16 TiB"));
            }
        }
        Ok(Self {
            plan,
            places,
            blocks: block,
            warnings,
        })
    }

    /// Writes everything but the contents of files.
    pub(super) fn write(&self, image: &File) -> io::Result<()> {
        image.set_len(self.blocks * BLOCK)?;
        image.write_all_at(&self.superblock(), SUPERBLOCK)?;
        for (number, node) in self.plan.nodes.iter().enumerate() {
            let place = &self.places[number];
            let mut bytes = self.inode(number, node).to_vec();
            bytes.extend(attributes_bytes(&place.attributes));
            image.write_all_at(&bytes, place.offset)?;
            let data = match &node.inode.kind {
                Kind::Directory => self.folder(number, node),
                Kind::Symlink(target) => target.to_vec(),
                _ => continue,
            };
            let mut rest = &data[..];
            for span in place.spans() {
                let (part, after) = rest.split_at(span.length as usize);
                image.write_all_at(part, span.offset)?;
                rest = after;
            }
        }
        Ok(())
    }

    /// Where the content of a node goes.
    pub(super) fn place(&self, number: usize) -> Vec<Span> {
        self.places[number].spans().collect()
    }

    fn nid(&self, number: usize) -> u64 {
        self.places[number].offset / SLOT
    }

    fn superblock(&self) -> [u8; (BLOCK - SUPERBLOCK) as usize] {
        // The checksum is over the rest of the block, too.
        let mut block = [0; (BLOCK - SUPERBLOCK) as usize];
        put(&mut block, 0, MAGIC.to_le_bytes());
        // The superblock has a checksum; times are those of the last change.
        put(&mut block, 8, 3_u32.to_le_bytes());
        block[12] = BLOCK.ilog2() as u8;
        let root = u16::try_from(self.nid(0)).expect("the root comes first");
        put(&mut block, 14, root.to_le_bytes());
        put(&mut block, 16, (self.places.len() as u64).to_le_bytes());
        put(&mut block, 36, (self.blocks as u32).to_le_bytes());
        put(&mut block, 48, self.plan.uuid());
        let checksum = crc32c(&block);
        put(&mut block, 4, checksum.to_le_bytes());
        block
    }

    fn inode(&self, number: usize, node: &Node<'_>) -> [u8; INODE as usize] {
        let place = &self.places[number];
        let meta = &node.inode.meta;
        let mut inode = [0; INODE as usize];
        let layout = if place.in_blocks < place.size {
            INLINE
        } else {
            PLAIN
        };
        // The larger of the two forms of inodes.
        put(&mut inode, 0, (1 | layout << 1).to_le_bytes());
        let attributes = attributes_size(&place.attributes);
        if attributes > 0 {
            let count = (attributes - 12) / 4 + 1;
            put(&mut inode, 2, (count as u16).to_le_bytes());
        }
        let mode = meta.mode & 0o7777 | type_bits(&node.inode.kind);
        put(&mut inode, 4, (mode as u16).to_le_bytes());
        put(&mut inode, 8, place.size.to_le_bytes());
        let what = match node.inode.kind {
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                device(major, minor).expect("it was checked")
            }
            _ => place.block as u32,
        };
        put(&mut inode, 16, what.to_le_bytes());
        put(&mut inode, 20, (number as u32 + 1).to_le_bytes());
        put(&mut inode, 24, meta.uid.to_le_bytes());
        put(&mut inode, 28, meta.gid.to_le_bytes());
        put(&mut inode, 32, meta.mtime.to_le_bytes());
        put(&mut inode, 44, node.links.to_le_bytes());
        inode
    }

    /// A folder's blocks: entries, then their names; the last block is as long as it needs to be.
    fn folder(&self, number: usize, node: &Node<'_>) -> Vec<u8> {
        let entries = entries(node, number);
        let mut data = Vec::new();
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let count = fitting(rest.iter().map(|(name, _)| name.len()));
            let (block, after) = rest.split_at(count);
            data.resize(data.len().next_multiple_of(BLOCK as usize), 0);
            let mut offset = count * ENTRY as usize;
            for (name, child) in block {
                data.extend_from_slice(&self.nid(*child).to_le_bytes());
                data.extend_from_slice(&(offset as u16).to_le_bytes());
                data.extend_from_slice(&[entry_type(&self.plan.nodes[*child].inode.kind), 0]);
                offset += name.len();
            }
            for (name, _) in block {
                data.extend_from_slice(name);
            }
            rest = after;
        }
        data
    }
}

impl Place {
    fn spans(&self) -> impl Iterator<Item = Span> {
        let after = self.offset + INODE + attributes_size(&self.attributes);
        [
            Span {
                offset: self.block * BLOCK,
                length: self.in_blocks,
            },
            Span {
                offset: after,
                length: self.size - self.in_blocks,
            },
        ]
        .into_iter()
        .filter(|span| span.length > 0)
    }
}

/// All entries of a folder, sorted; the dots are names as others.
fn entries<'a>(node: &Node<'a>, number: usize) -> Vec<(&'a [u8], usize)> {
    let mut entries = node.children.clone();
    for (dots, target) in [(&b"."[..], number), (b"..", node.parent)] {
        let at = entries.partition_point(|(name, _)| *name < dots);
        entries.insert(at, (dots, target));
    }
    entries
}

/// How many of the entries, given by the lengths of their names, go into one block.
fn fitting(lengths: impl Iterator<Item = usize>) -> usize {
    let mut used = 0;
    lengths
        .take_while(|length| {
            used += ENTRY + *length as u64;
            used <= BLOCK
        })
        .count()
}

fn folder_size(lengths: impl Iterator<Item = usize>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for length in lengths {
        let entry = ENTRY + length as u64;
        if used + entry > BLOCK {
            (full, used) = (full + BLOCK, 0);
        }
        used += entry;
    }
    full + used
}

fn attributes_size(attributes: &[Attribute]) -> u64 {
    let sizes = attributes.iter().map(|attribute| {
        (4 + attribute.name.len() + attribute.value.len()).next_multiple_of(4) as u64
    });
    if attributes.is_empty() {
        0
    } else {
        12 + sizes.sum::<u64>()
    }
}

fn attributes_bytes(attributes: &[Attribute]) -> Vec<u8> {
    let mut bytes = vec![0; if attributes.is_empty() { 0 } else { 12 }];
    for attribute in attributes {
        bytes.extend_from_slice(&[attribute.name.len() as u8, attribute.namespace]);
        bytes.extend_from_slice(&(attribute.value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&attribute.name);
        bytes.extend_from_slice(&attribute.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The Castagnoli checksum, as the kernel has it: begun with all ones, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_folder_has_the_size_of_its_blocks() {
        // 4096 bytes are 341 entries with no name and 4 bytes.
        for (count, length, size) in [(2, 1, 26), (315, 1, 4095), (316, 1, 4096 + 13)] {
            assert_eq!(folder_size(std::iter::repeat_n(length, count)), size);
        }
    }
}
