//! Writes an ext4 image that is decided: everything but the contents of files.

use std::{fs::File, io, os::unix::fs::FileExt};

use volant_layers::{Kind, Metadata};

use crate::filesystem::plan::{Node, device, entry_type, put, type_bits};

use super::{
    BLOCK, INODE, ROOT,
    geometry::{GROUP, Geometry},
    layout::{FAST_LINK, IN_BLOCK, IN_INODE, Layout, MAX_LINKS, Place, entry_size, names},
};

const SUPERBLOCK: u64 = 1024;
/// Extended attributes, and folders that may get an index.
const COMPATIBLE: u32 = 0x8 | 0x20;
/// Types in folders, extents.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// Few copies of the superblock, files over 2 GiB, folders with any number of folders, large inodes.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x20 | 0x40;
/// An inode whose data is in extents.
const EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
/// The range of times: 34 bits.
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;

impl Layout<'_> {
    pub(in crate::filesystem) fn write(&self, image: &File) -> io::Result<()> {
        let geometry = &self.geometry;
        image.set_len(geometry.blocks * BLOCK)?;
        let descriptors = self.descriptors();
        for group in 0..geometry.groups {
            if Geometry::has_superblock(group) {
                // Before the first there is room for a boot loader.
                let at = Geometry::start(group) * BLOCK;
                let room = if group == 0 { SUPERBLOCK } else { 0 };
                image.write_all_at(&self.superblock(group), at + room)?;
                image.write_all_at(&descriptors, at + BLOCK)?;
            }
            let used = self.used[group as usize] - Geometry::start(group);
            let there = geometry.end(group) - Geometry::start(group);
            let at = geometry.bitmap(group) * BLOCK;
            image.write_all_at(&bitmap(used, there), at)?;
            let inodes = bitmap(self.used_inodes(group), geometry.inodes_per_group);
            image.write_all_at(&inodes, at + BLOCK)?;
        }
        for (number, node) in self.plan.nodes.iter().enumerate() {
            let place = &self.places[number];
            self.write_inode(image, node, place)?;
            match &node.inode.kind {
                Kind::Directory => {
                    let entries = self.entries(node, number);
                    write_data(image, place, &entries)?;
                }
                Kind::Symlink(target) if target.len() > FAST_LINK => {
                    write_data(image, place, target)?;
                }
                _ => {}
            }
        }
        if let Some(place) = &self.lost_and_found {
            let meta = Metadata {
                mode: 0o700,
                mtime: self.plan.nodes[0].inode.meta.mtime,
                ..Metadata::default()
            };
            let mut inode = inode(&meta, type_bits(&Kind::Directory), 2, place);
            write_extents(image, &mut inode, place)?;
            image.write_all_at(&inode, self.inode_offset(place.inode))?;
            let entries = folder(&[(b".", place.inode, 2), (b"..", ROOT, 2)]);
            write_data(image, place, &entries)?;
        }
        Ok(())
    }

    fn write_inode(&self, image: &File, node: &Node<'_>, place: &Place) -> io::Result<()> {
        let mut links = node.links;
        if place.inode == ROOT && self.lost_and_found.is_some() {
            links += 1;
        }
        // One stands for more than can be counted.
        let links = if links > MAX_LINKS { 1 } else { links };
        let kind = &node.inode.kind;
        let mut inode = inode(&node.inode.meta, type_bits(kind), links, place);
        match kind {
            Kind::Directory | Kind::File(_) => write_extents(image, &mut inode, place)?,
            Kind::Symlink(target) if target.len() > FAST_LINK => {
                write_extents(image, &mut inode, place)?;
            }
            Kind::Symlink(target) => {
                inode[40..40 + target.len()].copy_from_slice(target);
                put(&mut inode, 4, (target.len() as u32).to_le_bytes());
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                if *major < 256 && *minor < 256 {
                    put(&mut inode, 40, (major << 8 | minor).to_le_bytes());
                } else {
                    let number = device(*major, *minor).expect("it was checked");
                    put(&mut inode, 44, number.to_le_bytes());
                }
            }
            Kind::Fifo => {}
        }
        match place.attribute_block {
            None => place.attributes.to_inode(&mut inode),
            Some(block) => {
                put(&mut inode, 104, (block as u32).to_le_bytes());
                image.write_all_at(&place.attributes.to_block(), block * BLOCK)?;
            }
        }
        image.write_all_at(&inode, self.inode_offset(place.inode))
    }

    fn inode_offset(&self, inode: u32) -> u64 {
        let index = u64::from(inode) - 1;
        let group = index / self.geometry.inodes_per_group;
        let within = index % self.geometry.inodes_per_group;
        self.geometry.inode_table(group) * BLOCK + within * INODE
    }

    fn entries(&self, node: &Node<'_>, number: usize) -> Vec<u8> {
        let lost = self.lost_and_found.as_ref().filter(|_| number == 0);
        let entries: Vec<(&[u8], u32, u8)> = names(node, number, lost.is_some())
            .into_iter()
            .filter_map(|(name, number)| match number {
                Some(number) => {
                    let kind = &self.plan.nodes[number].inode.kind;
                    Some((name, self.places[number].inode, entry_type(kind)))
                }
                None => lost.map(|lost| (name, lost.inode, entry_type(&Kind::Directory))),
            })
            .collect();
        folder(&entries)
    }

    fn used_inodes(&self, group: u64) -> u64 {
        let per_group = self.geometry.inodes_per_group;
        self.last_inode()
            .saturating_sub(group * per_group)
            .min(per_group)
    }

    fn free_blocks(&self, group: u64) -> u64 {
        self.geometry.end(group) - self.used[group as usize]
    }

    fn descriptors(&self) -> Vec<u8> {
        let geometry = &self.geometry;
        let mut folders = vec![0_u16; geometry.groups as usize];
        let nodes = self.plan.nodes.iter().zip(&self.places);
        let places = nodes
            .filter(|(node, _)| node.inode.is_directory())
            .map(|(_, place)| place);
        for place in places.chain(&self.lost_and_found) {
            let group = u64::from(place.inode - 1) / geometry.inodes_per_group;
            folders[group as usize] += 1;
        }
        let mut bytes = vec![0; (geometry.descriptor_blocks() * BLOCK) as usize];
        for (descriptor, group) in bytes.chunks_mut(32).zip(0..geometry.groups) {
            let bitmap = geometry.bitmap(group);
            put(descriptor, 0, (bitmap as u32).to_le_bytes());
            put(descriptor, 4, (bitmap as u32 + 1).to_le_bytes());
            put(descriptor, 8, (bitmap as u32 + 2).to_le_bytes());
            put(
                descriptor,
                12,
                (self.free_blocks(group) as u16).to_le_bytes(),
            );
            let free = geometry.inodes_per_group - self.used_inodes(group);
            put(descriptor, 14, (free as u16).to_le_bytes());
            put(descriptor, 16, folders[group as usize].to_le_bytes());
        }
        bytes
    }

    fn superblock(&self, group: u64) -> [u8; 1024] {
        let geometry = &self.geometry;
        let uuid = self.plan.uuid();
        let free: u64 = (0..geometry.groups)
            .map(|group| self.free_blocks(group))
            .sum();
        let mut block = [0; 1024];
        let mut word = |at: usize, value: u32| put(&mut block, at, value.to_le_bytes());
        word(0, geometry.inodes() as u32);
        word(4, geometry.blocks as u32);
        word(12, free as u32);
        word(16, (geometry.inodes() - self.last_inode()) as u32);
        // Blocks of 2^(10 + 2) bytes, and clusters alike.
        word(24, 2);
        word(28, 2);
        word(32, GROUP as u32);
        word(36, GROUP as u32);
        word(40, geometry.inodes_per_group as u32);
        // Clean; errors are gone past.
        word(56, 0xef53 | 1 << 16);
        word(60, 1);
        word(76, 1);
        word(84, super::RESERVED as u32 + 1);
        word(88, INODE as u32 | (group as u32) << 16);
        word(92, COMPATIBLE);
        word(96, INCOMPATIBLE);
        word(100, READ_ONLY_COMPATIBLE);
        // Mounted with attributes of users and access lists.
        word(256, 0xc);
        // The fields of an inode past 128 bytes: needed, and wanted.
        word(348, 32 | 32 << 16);
        // Names are hashed as signed bytes.
        word(352, 1);
        // It is never checked for having been mounted often.
        put(&mut block, 54, u16::MAX.to_le_bytes());
        put(&mut block, 104, uuid);
        put(&mut block, 236, uuid);
        // Half of MD4.
        block[252] = 1;
        block
    }
}

/// An inode without what it holds.
fn inode(meta: &Metadata, kind: u32, links: u32, place: &Place) -> [u8; INODE as usize] {
    let mut inode = [0; INODE as usize];
    let mut half = |at: usize, value: u32| put(&mut inode, at, (value as u16).to_le_bytes());
    half(0, kind | meta.mode & 0o7777);
    half(2, meta.uid);
    half(24, meta.gid);
    half(26, links);
    half(120, meta.uid >> 16);
    half(122, meta.gid >> 16);
    half(128, 32);
    let mut word = |at: usize, value: u32| put(&mut inode, at, value.to_le_bytes());
    word(4, place.size as u32);
    word(108, (place.size >> 32) as u32);
    word(28, (place.blocks() * (BLOCK / 512)) as u32);
    let time = meta.mtime.clamp(*TIMES.start(), *TIMES.end());
    let epoch = (time - i64::from(time as i32)) >> 32;
    // Accessed, changed, modified, made; and how far past 2038 each is.
    for (at, past) in [(8, 140), (12, 132), (16, 136), (144, 148)] {
        word(at, time as u32);
        word(past, epoch as u32);
    }
    inode
}

/// Puts the root of the tree of extents into an inode, and the rest of it into its blocks.
fn write_extents(image: &File, inode: &mut [u8], place: &Place) -> io::Result<()> {
    let mut logical = 0_u32;
    let mut entries: Vec<(u32, [u8; 12])> = Vec::with_capacity(place.extents.len());
    for extent in &place.extents {
        let mut entry = [0; 12];
        put(&mut entry, 0, logical.to_le_bytes());
        put(&mut entry, 4, (extent.length as u16).to_le_bytes());
        put(&mut entry, 8, (extent.start as u32).to_le_bytes());
        entries.push((logical, entry));
        logical += extent.length as u32;
    }
    let mut depth = 0;
    let mut blocks = place.tree.iter();
    while entries.len() > IN_INODE {
        let mut above = Vec::new();
        for (part, block) in entries.chunks(IN_BLOCK).zip(&mut blocks) {
            let node = extent_node(part, IN_BLOCK, depth);
            image.write_all_at(&node, block * BLOCK)?;
            let mut entry = [0; 12];
            put(&mut entry, 0, part[0].0.to_le_bytes());
            put(&mut entry, 4, (*block as u32).to_le_bytes());
            above.push((part[0].0, entry));
        }
        entries = above;
        depth += 1;
    }
    let node = extent_node(&entries, IN_INODE, depth);
    inode[40..40 + node.len()].copy_from_slice(&node);
    put(inode, 32, EXTENTS.to_le_bytes());
    Ok(())
}

fn extent_node(entries: &[(u32, [u8; 12])], most: usize, depth: u16) -> Vec<u8> {
    let mut node = Vec::with_capacity(12 * (1 + entries.len()));
    for field in [EXTENT_MAGIC, entries.len() as u16, most as u16, depth, 0, 0] {
        node.extend_from_slice(&field.to_le_bytes());
    }
    for (_, entry) in entries {
        node.extend_from_slice(entry);
    }
    node
}

/// The blocks of a folder: in each, the last entry goes to its end.
fn folder(entries: &[(&[u8], u32, u8)]) -> Vec<u8> {
    let block = BLOCK as usize;
    let mut data = Vec::new();
    let mut last = 0;
    let stretch = |data: &mut Vec<u8>, last: usize| {
        data.resize(data.len().next_multiple_of(block), 0);
        let length = (data.len() - last) as u16;
        put(data, last + 4, length.to_le_bytes());
    };
    for (name, inode, kind) in entries {
        let size = entry_size(name);
        if data.len() % block + size > block {
            stretch(&mut data, last);
        }
        last = data.len();
        data.extend_from_slice(&inode.to_le_bytes());
        data.extend_from_slice(&(size as u16).to_le_bytes());
        data.extend_from_slice(&[name.len() as u8, *kind]);
        data.extend_from_slice(name);
        data.resize(last + size, 0);
    }
    stretch(&mut data, last);
    data
}

fn write_data(image: &File, place: &Place, mut data: &[u8]) -> io::Result<()> {
    for span in place.spans() {
        let (part, after) = data.split_at(span.length as usize);
        image.write_all_at(part, span.offset)?;
        data = after;
    }
    Ok(())
}

/// A block of bits of which the first `used` are set, and those that stand for nothing.
fn bitmap(used: u64, there: u64) -> Vec<u8> {
    let bit = |at: u64| u8::from(at < used || at >= there);
    (0..BLOCK)
        .map(|byte| (0..8).fold(0, |bits, at| bits | bit(byte * 8 + at) << at))
        .collect()
}
