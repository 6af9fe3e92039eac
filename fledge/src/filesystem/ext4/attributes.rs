//! Extended attributes as ext4 stores them: in the inode where they fit, else all of them in one block.

use volant_layers::shown;

use crate::filesystem::{
    attributes::{ACL_ACCESS, ACL_DEFAULT, Attribute},
    plan::put,
};

const MAGIC: u32 = 0xea02_0000;
const HEADER: usize = 32;
const ENTRY: usize = 16;
/// Four bytes of zeros end the entries.
const END: usize = 4;
/// After the fields of the inode and the magic.
pub(super) const INODE_ROOM: usize = 256 - 160 - 4 - END;
pub(super) const BLOCK_ROOM: usize = 4096 - HEADER - END;

#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    attributes: Vec<Attribute>,
    pub in_block: bool,
}

/// Attributes in ext4's form; those that are no such thing go to `lost`.
pub(super) fn stored(path: &[u8], kept: Vec<Attribute>, lost: &mut Vec<String>) -> Stored {
    let mut attributes = Vec::with_capacity(kept.len());
    for mut attribute in kept {
        if [ACL_ACCESS, ACL_DEFAULT].contains(&attribute.namespace) {
            let Some(list) = access_list(&attribute.value) else {
                lost.push(format!("/{}: its access list is not valid", shown(path)));
                continue;
            };
            attribute.value = list;
        }
        attributes.push(attribute);
    }
    let mut stored = Stored {
        attributes,
        in_block: false,
    };
    stored.in_block = stored.size() > INODE_ROOM;
    stored
}

impl Stored {
    pub(super) fn size(&self) -> usize {
        self.attributes
            .iter()
            .map(|attribute| {
                let name = (ENTRY + attribute.name.len()).next_multiple_of(4);
                name + attribute.value.len().next_multiple_of(4)
            })
            .sum()
    }

    /// Writes them to the end of an inode.
    pub(super) fn to_inode(&self, inode: &mut [u8]) {
        if !self.attributes.is_empty() {
            put(inode, 160, MAGIC.to_le_bytes());
            self.write(&mut inode[164..], 0);
        }
    }

    /// Writes them to a block of their own.
    pub(super) fn to_block(&self) -> Vec<u8> {
        let mut block = vec![0; 4096];
        let hash = self.write(&mut block, HEADER);
        put(&mut block, 0, MAGIC.to_le_bytes());
        // One inode refers to one block.
        put(&mut block, 4, 1_u32.to_le_bytes());
        put(&mut block, 8, 1_u32.to_le_bytes());
        put(&mut block, 12, hash.to_le_bytes());
        block
    }

    /// Entries from `at` on, values from the end backwards. Gives the hash of all.
    fn write(&self, area: &mut [u8], mut at: usize) -> u32 {
        let mut end = area.len();
        let mut all = 0_u32;
        for Attribute {
            namespace,
            name,
            value,
        } in &self.attributes
        {
            end -= value.len().next_multiple_of(4);
            let hash = hash(name, value);
            all = all.rotate_left(16) ^ hash;
            area[at] = name.len() as u8;
            area[at + 1] = *namespace;
            let offset = if value.is_empty() { 0 } else { end };
            put(area, at + 2, (offset as u16).to_le_bytes());
            put(area, at + 8, (value.len() as u32).to_le_bytes());
            put(area, at + 12, hash.to_le_bytes());
            area[at + ENTRY..][..name.len()].copy_from_slice(name);
            area[end..][..value.len()].copy_from_slice(value);
            at += (ENTRY + name.len()).next_multiple_of(4);
        }
        all
    }
}

/// What the checker compares.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let name = name
        .iter()
        .fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(name, |hash, word| {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        hash.rotate_left(16) ^ u32::from_le_bytes(bytes)
    })
}

/// An access list as ext4 has it, from the kernel's: only entries for a named user or group have an id.
fn access_list(value: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let entries = value.strip_prefix(&2_u32.to_le_bytes())?;
    if entries.len() % 8 != 0 {
        return None;
    }
    let mut list = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks(8) {
        list.extend_from_slice(&entry[..4]);
        match u16::from_le_bytes([entry[0], entry[1]]) {
            USER | GROUP => list.extend_from_slice(&entry[4..]),
            1 | 4 | 16 | 32 => {}
            _ => return None,
        }
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_list_is_shorter_than_the_kernels() {
        let entry = |tag: u8, id: [u8; 4]| [&[tag, 0, 6, 0][..], &id].concat();
        let kernels = [
            &[2, 0, 0, 0][..],
            &entry(1, [0xff; 4]),
            &entry(2, [7, 0, 0, 0]),
            &entry(32, [0xff; 4]),
        ]
        .concat();
        let ext4: &[u8] = &[1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 6, 0, 7, 0, 0, 0, 32, 0, 6, 0];
        assert_eq!(access_list(&kernels).as_deref(), Some(ext4));
        for wrong in [
            &b""[..],
            &kernels[..9],
            &[1, 0, 0, 0],
            &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(access_list(wrong), None);
        }
    }
}
