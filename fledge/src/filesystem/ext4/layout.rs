//! Decides where everything in an ext4 image goes, before the first byte is written.

use volant_layers::Kind;

use crate::filesystem::{
    attributes::attributes,
    plan::{Node, Plan, Span, Unfit, device},
};

use super::{
    BLOCK, LOST_AND_FOUND, RESERVED, ROOT,
    attributes::{BLOCK_ROOM, INODE_ROOM, Stored, stored},
    geometry::Geometry,
};

/// Entries in an inode's own part of its tree of extents, and in a block of it.
pub(super) const IN_INODE: usize = 4;
pub(super) const IN_BLOCK: usize = 340;
/// Blocks of one extent.
const EXTENT: u64 = 32768;
/// Links that an inode can count.
pub(super) const MAX_LINKS: u32 = 65000;
/// A link's target of at most this length is in its inode.
pub(super) const FAST_LINK: usize = 59;
/// What the inode's count of sectors can tell.
const MAX_FILE: u64 = 1 << 40;
/// Bytes for each of the inodes that an image of a given size has at least, as `mke2fs` has it.
const BYTES_PER_INODE: u64 = 16384;

#[derive(Debug)]
pub(in crate::filesystem) enum Error {
    Unfit(Unfit),
    TooSmall {
        /// In bytes, roughly.
        needed: u64,
    },
}

pub(in crate::filesystem) struct Layout<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) geometry: Geometry,
    pub(super) places: Vec<Place>,
    /// That of the folder which the image has besides the tree, if the tree has it not.
    pub(super) lost_and_found: Option<Place>,
    /// The first block of each group that nothing uses.
    pub(super) used: Vec<u64>,
    pub(in crate::filesystem) warnings: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    pub inode: u32,
    /// All bytes of a file, a link's target or a folder's entries.
    pub size: u64,
    pub extents: Vec<Extent>,
    /// The blocks of the tree of extents, those next to the data first.
    pub tree: Vec<u64>,
    pub attributes: Stored,
    pub attribute_block: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub start: u64,
    pub length: u64,
}

/// Gives out blocks in order.
struct Blocks {
    geometry: Geometry,
    group: u64,
    next: u64,
    used: Vec<u64>,
}

impl Blocks {
    fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            group: 0,
            next: geometry.first_data(0),
            used: (0..geometry.groups)
                .map(|group| geometry.first_data(group))
                .collect(),
        }
    }

    /// As many as that, in as few pieces as possible.
    fn take(&mut self, mut count: u64) -> Option<Vec<Extent>> {
        let mut extents = Vec::new();
        while count > 0 {
            let left = self.geometry.end(self.group) - self.next;
            if left == 0 {
                self.group += 1;
                if self.group == self.geometry.groups {
                    return None;
                }
                self.next = self.geometry.first_data(self.group);
                continue;
            }
            let length = count.min(left).min(EXTENT);
            extents.push(Extent {
                start: self.next,
                length,
            });
            self.next += length;
            self.used[self.group as usize] = self.next;
            count -= length;
        }
        Some(extents)
    }

    fn one(&mut self) -> Option<u64> {
        self.take(1).map(|extents| extents[0].start)
    }
}

impl<'a> Layout<'a> {
    /// `size` is that of the image in bytes.
    pub(in crate::filesystem) fn new(plan: &'a Plan<'a>, size: Option<u64>) -> Result<Self, Error> {
        let mut warnings = Vec::new();
        let (mut places, lost_and_found) = places(plan, &mut warnings).map_err(Error::Unfit)?;
        let content: u64 = places
            .iter()
            .chain(&lost_and_found)
            .map(|place| place.size.div_ceil(BLOCK) + u64::from(place.attributes.in_block))
            .sum();
        let inodes = places.len() as u64 + RESERVED + 1;
        let spare = inodes + inodes / 10;
        let give = |geometry: Option<Geometry>, places: &mut Vec<Place>| {
            let mut lost = lost_and_found.clone();
            let geometry = geometry?;
            let used = allocate(geometry, places.iter_mut().chain(&mut lost))?;
            Some((geometry, lost, used))
        };
        // What is needed, and a tenth; more in small steps, since groups and trees of extents take some, too.
        let fitting = |places: &mut Vec<Place>, mut blocks: u64| loop {
            if let Some(given) = give(Geometry::new(blocks, spare), places) {
                break Ok(given);
            }
            if blocks > u64::from(u32::MAX) {
                let why = "the image would be larger than 16 TiB";
                break Err(Error::Unfit((0, why)));
            }
            blocks += blocks / 50 + 64;
        };
        let (geometry, lost_and_found, used) = match size.map(|size| size / BLOCK) {
            None => fitting(&mut places, content + content / 10 + 64)?,
            Some(blocks) => {
                let inodes = spare.max(blocks * BLOCK / BYTES_PER_INODE);
                match give(Geometry::new(blocks, inodes), &mut places) {
                    Some(given) => given,
                    None => {
                        let (geometry, ..) = fitting(&mut places, blocks.max(content))?;
                        let needed = geometry.blocks * BLOCK;
                        return Err(Error::TooSmall { needed });
                    }
                }
            }
        };
        Ok(Self {
            plan,
            geometry,
            places,
            lost_and_found,
            used,
            warnings,
        })
    }

    /// Where the content of a node goes.
    pub(in crate::filesystem) fn place(&self, number: usize) -> Vec<Span> {
        self.places[number].spans()
    }

    /// The highest inode that is used.
    pub(super) fn last_inode(&self) -> u64 {
        // The root is one of the reserved.
        let others = self.places.len() as u64 - 1 + u64::from(self.lost_and_found.is_some());
        RESERVED + others
    }
}

impl Place {
    pub(super) fn spans(&self) -> Vec<Span> {
        let mut left = self.size;
        let mut spans = Vec::with_capacity(self.extents.len());
        for extent in &self.extents {
            let length = left.min(extent.length * BLOCK);
            spans.push(Span {
                offset: extent.start * BLOCK,
                length,
            });
            left -= length;
        }
        spans
    }

    /// All blocks that count as the inode's.
    pub(super) fn blocks(&self) -> u64 {
        let data: u64 = self.extents.iter().map(|extent| extent.length).sum();
        data + self.tree.len() as u64 + u64::from(self.attribute_block.is_some())
    }
}

/// The places of all nodes, and of a lost+found if the tree has none, without blocks yet.
fn places(
    plan: &Plan<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<Place>, Option<Place>), Unfit> {
    let is_lost = |(name, _): &&(&[u8], usize)| *name == LOST_AND_FOUND;
    let lost = plan.nodes[0]
        .children
        .iter()
        .find(is_lost)
        .map(|(_, number)| *number);
    if let Some(number) = lost
        && !plan.nodes[number].inode.is_directory()
    {
        return Err((number, "ext4 keeps a folder of this name"));
    }
    let first = RESERVED as u32 + 1;
    let mut next = first;
    let mut places = Vec::with_capacity(plan.nodes.len());
    for (number, node) in plan.nodes.iter().enumerate() {
        let unfit = |why| (number, why);
        let inode = if number == 0 {
            ROOT
        } else if lost == Some(number) {
            first
        } else {
            next += 1;
            next
        };
        let size = match &node.inode.kind {
            Kind::Directory => folder_blocks(node, number == 0 && lost.is_none()) * BLOCK,
            Kind::Symlink(target) if target.len() >= BLOCK as usize => {
                return Err(unfit("its target is longer than 4095 bytes"));
            }
            Kind::Symlink(target) if target.len() <= FAST_LINK => 0,
            Kind::Symlink(target) => target.len() as u64,
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                device(*major, *minor).map_err(unfit)?;
                0
            }
            _ => node.inode.size(),
        };
        if size > MAX_FILE {
            return Err(unfit("it is larger than 1 TiB"));
        }
        if node.links > MAX_LINKS && !node.inode.is_directory() {
            return Err(unfit("it has more than 65000 hard links"));
        }
        let kept = attributes(node.path, &node.inode.meta.xattrs, warnings);
        let attributes = stored(node.path, kept, warnings);
        if attributes.size() > BLOCK_ROOM.max(INODE_ROOM) {
            return Err(unfit("its extended attributes do not fit into 4096 bytes"));
        }
        places.push(Place {
            inode,
            size,
            attributes,
            ..Place::default()
        });
    }
    let lost = lost.is_none().then(|| Place {
        inode: first,
        size: BLOCK,
        ..Place::default()
    });
    Ok((places, lost))
}

/// Gives blocks to all; gives the first unused block of each group, or nothing if they do not fit.
fn allocate<'a>(
    geometry: Geometry,
    places: impl Iterator<Item = &'a mut Place>,
) -> Option<Vec<u64>> {
    let mut blocks = Blocks::new(geometry);
    for place in places {
        place.extents = blocks.take(place.size.div_ceil(BLOCK))?;
        place.tree.clear();
        let mut entries = place.extents.len();
        while entries > IN_INODE {
            entries = entries.div_ceil(IN_BLOCK);
            for _ in 0..entries {
                place.tree.push(blocks.one()?);
            }
        }
        if place.attributes.in_block {
            place.attribute_block = Some(blocks.one()?);
        }
    }
    Some(blocks.used)
}

/// The names of a folder with the numbers of their nodes; none for lost+found, which is no node.
pub(super) fn names<'a>(
    node: &Node<'a>,
    number: usize,
    with_lost: bool,
) -> Vec<(&'a [u8], Option<usize>)> {
    let mut names = vec![(&b"."[..], Some(number)), (b"..", Some(node.parent))];
    names.extend(
        node.children
            .iter()
            .map(|(name, child)| (*name, Some(*child))),
    );
    if with_lost {
        names.push((LOST_AND_FOUND, None));
    }
    names
}

/// The room that an entry of a folder takes.
pub(super) fn entry_size(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

fn folder_blocks(node: &Node<'_>, with_lost: bool) -> u64 {
    let (mut blocks, mut used) = (1, 0);
    for (name, _) in names(node, 0, with_lost) {
        let size = entry_size(name) as u64;
        if used + size > BLOCK {
            (blocks, used) = (blocks + 1, 0);
        }
        used += size;
    }
    blocks
}
