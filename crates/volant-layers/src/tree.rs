//! What a root holds: paths and what stands there. Decides; reads no file.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    inode::{Inode, Kind},
    name::{self, MAX_PATH},
};

/// The links that are followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// What is inserted counts as a layer above all others.
const INSERTED: u32 = u32::MAX;

/// The root of a file system. Paths in it are relative to the root, which is itself at the empty path; a
/// folder stands before what is in it. Paths that share an inode are hard links.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: BTreeMap<Box<[u8]>, Node>,
    cost: u64,
}

#[derive(Clone, Debug)]
struct Node {
    inode: Arc<Inode>,
    /// The last layer that wrote it, or something in it.
    layer: u32,
}

/// Why something cannot stand where it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("two things are to be at {}", .0.display())]
    Taken(PathBuf),
    #[error("{} is no folder, so nothing can be in it", .0.display())]
    NoFolder(PathBuf),
    #[error("the symbolic links of {} lead nowhere", .0.display())]
    Links(PathBuf),
}

/// What a `..` does at the root.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Above {
    /// It stays there, as in a running system.
    Stays,
    /// The link that it is in is refused.
    Leaves,
}

/// How far a path could be followed.
pub(crate) struct Walk {
    /// The path without links, with the names that are not there yet.
    pub key: Vec<u8>,
    /// The length of the part of the key that is there.
    pub found: usize,
    /// The work that it was.
    pub work: u64,
}

/// Why a path cannot be followed.
pub(crate) enum WalkError {
    /// The link at this key leads out of the root.
    Leaves(Vec<u8>),
    Nowhere,
    TooLong,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// An empty root, of mode 0755 and root's.
    #[must_use]
    pub fn new() -> Self {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            cost: 0,
        };
        tree.set(&[], Arc::new(Inode::directory(0o755)), 0);
        tree
    }

    /// Puts an inode at an absolute path, over what layers have there; folders above it come by themselves. A
    /// folder that is there already stays as it is.
    ///
    /// # Errors
    /// Something was inserted there already, a folder is there or is to replace something else, or a part of the
    /// path is no folder.
    pub fn insert(&mut self, path: &Path, inode: Inode) -> Result<(), TreeError> {
        let Some(last) = path.file_name() else {
            return if inode.is_directory() {
                Ok(())
            } else {
                Err(TreeError::Taken(path.to_owned()))
            };
        };
        let mut key = self.folder(path, path.parent().unwrap_or(path))?;
        name::push(&mut key, last.as_bytes());
        let there = self.nodes.get(&*key);
        match there.map(|node| (&node.inode.kind, node.layer)) {
            Some((Kind::Directory, _)) if inode.is_directory() => Ok(()),
            Some((Kind::Symlink(_), _)) if inode.is_directory() => {
                self.folder(path, path).map(|_| ())
            }
            Some((kind, layer))
                if layer == INSERTED || inode.is_directory() || *kind == Kind::Directory =>
            {
                Err(TreeError::Taken(path.to_owned()))
            }
            _ => {
                self.put(&key, Arc::new(inode), INSERTED);
                Ok(())
            }
        }
    }

    /// What stands at an absolute path once symbolic links are followed, as a system that runs there would.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<&Inode> {
        let walk = self.walk(path.as_os_str().as_bytes(), Above::Stays).ok()?;
        (walk.found == walk.key.len())
            .then(|| self.get(&walk.key))
            .flatten()
    }

    /// What stands at a path relative to the root; no link is followed.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Inode> {
        self.nodes.get(path).map(|node| &*node.inode)
    }

    /// All paths in order, the root first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Inode)> {
        self.nodes
            .iter()
            .map(|(path, node)| (&**path, &*node.inode))
    }

    /// The bytes of all files, those with several paths once.
    #[must_use]
    pub fn size(&self) -> u64 {
        let mut seen = HashSet::new();
        self.nodes
            .values()
            .filter(|node| {
                Arc::strong_count(&node.inode) == 1 || seen.insert(Arc::as_ptr(&node.inode))
            })
            .fold(0, |sum, node| sum.saturating_add(node.inode.size()))
    }

    /// The paths with their inodes, for telling which are shared.
    pub(crate) fn shared(&self) -> impl Iterator<Item = (&[u8], &Arc<Inode>)> {
        self.nodes.iter().map(|(path, node)| (&**path, &node.inode))
    }

    /// The memory that was asked for since the tree began.
    pub(crate) fn cost(&self) -> u64 {
        self.cost
    }

    pub(crate) fn inode(&self, key: &[u8]) -> Option<&Arc<Inode>> {
        self.nodes.get(key).map(|node| &node.inode)
    }

    /// Puts an inode where the folder is there already, as an upper layer does: a folder over a folder keeps
    /// what is in it, all else replaces what was there with all that was in it.
    pub(crate) fn put(&mut self, key: &[u8], inode: Arc<Inode>, layer: u32) {
        let was_directory = self.get(key).is_some_and(Inode::is_directory);
        if was_directory && !inode.is_directory() {
            self.remove_below(key, |_, _| true);
        }
        self.set(key, inode, layer);
        self.touch(key, layer);
    }

    /// Makes the folders of a key of which the first `found` bytes are there.
    pub(crate) fn make_folders(&mut self, key: &[u8], found: usize, layer: u32) {
        let ends = (found + 1..key.len()).filter(|at| key[*at] == b'/');
        let last = (found < key.len()).then_some(key.len());
        let mut missing = ends.chain(last).peekable();
        // First those above that are there: of a folder that is new, the layer is right already.
        let there = missing.peek().copied().unwrap_or(key.len());
        self.touch(&key[..there], layer);
        for end in missing {
            self.set(&key[..end], Arc::new(Inode::directory(0o755)), layer);
        }
    }

    /// Removes what layers below `layer` left at and below a key; what this layer wrote stays. Gives the work
    /// that it was.
    pub(crate) fn white_out(&mut self, key: &[u8], layer: u32) -> u64 {
        let work = self.clear(key, layer);
        if self.nodes.get(key).is_some_and(|node| node.layer < layer) {
            self.nodes.remove(key);
        }
        work
    }

    /// Removes what layers below `layer` left below a key; what this layer wrote stays. Gives the work that it
    /// was.
    pub(crate) fn clear(&mut self, key: &[u8], layer: u32) -> u64 {
        let mut work = 0;
        if self.get(key).is_some_and(Inode::is_directory) {
            self.remove_below(key, |path, node| {
                work += work_of(path);
                node.layer < layer
            });
        }
        work
    }

    /// Removes a key with all below it.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.remove_below(key, |_, _| true);
        self.nodes.remove(key);
    }

    /// Follows a path from the root as far as it goes.
    pub(crate) fn walk(&self, path: &[u8], above: Above) -> Result<Walk, WalkError> {
        let (mut links, mut work) = (0, 0);
        let mut link = Vec::new();
        let mut key = Vec::new();
        let mut todo: Vec<&[u8]> = name::parts(path).rev().collect();
        while let Some(part) = todo.pop() {
            if part == b".." {
                if key.is_empty() && above == Above::Leaves {
                    return Err(WalkError::Leaves(link));
                }
                name::pop(&mut key);
                continue;
            }
            let length = key.len();
            name::push(&mut key, part);
            work += work_of(&key);
            if key.len() > MAX_PATH {
                return Err(WalkError::TooLong);
            }
            match self.get(&key).map(|inode| &inode.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(WalkError::Nowhere);
                    }
                    link.clone_from(&key);
                    key.truncate(if target.starts_with(b"/") { 0 } else { length });
                    todo.extend(name::parts(target).rev());
                }
                Some(_) => {}
                None => {
                    for part in todo.iter().rev() {
                        if *part == b".." {
                            return Err(WalkError::Nowhere);
                        }
                        name::push(&mut key, part);
                    }
                    if key.len() > MAX_PATH {
                        return Err(WalkError::TooLong);
                    }
                    return Ok(Walk {
                        key,
                        found: length,
                        work,
                    });
                }
            }
        }
        let found = key.len();
        Ok(Walk { key, found, work })
    }

    /// The key of the folder at an absolute path, made when missing; `path` is what an error is about.
    fn folder(&mut self, path: &Path, folder: &Path) -> Result<Vec<u8>, TreeError> {
        let walk = self
            .walk(folder.as_os_str().as_bytes(), Above::Stays)
            .map_err(|_| TreeError::Links(folder.to_owned()))?;
        let found = &walk.key[..walk.found];
        if !self.get(found).is_some_and(Inode::is_directory) {
            let found = Path::new(std::ffi::OsStr::from_bytes(found));
            return Err(TreeError::NoFolder(Path::new("/").join(found)));
        }
        if walk.key.len() > MAX_PATH {
            return Err(TreeError::Links(path.to_owned()));
        }
        self.make_folders(&walk.key, walk.found, INSERTED);
        Ok(walk.key)
    }

    fn set(&mut self, key: &[u8], inode: Arc<Inode>, layer: u32) {
        self.cost += key.len() as u64 + 64 + inode.cost();
        let node = Node { inode, layer };
        match self.nodes.get_mut(key) {
            Some(there) => *there = node,
            None => {
                self.nodes.insert(key.into(), node);
            }
        }
    }

    /// Marks the folders above a key as written by a layer.
    fn touch(&mut self, key: &[u8], layer: u32) {
        let mut folder = key;
        while !folder.is_empty() {
            folder = name::split(folder).0;
            match self.nodes.get_mut(folder) {
                Some(node) if node.layer != layer => node.layer = layer,
                _ => break,
            }
        }
    }

    fn remove_below(&mut self, key: &[u8], mut gone: impl FnMut(&[u8], &Node) -> bool) {
        let (from, to) = if key.is_empty() {
            (Bound::Excluded(key.into()), Bound::Unbounded)
        } else {
            // The byte after '/' is '0'.
            let [from, to] = [b'/', b'0'].map(|end| [key, &[end]].concat().into_boxed_slice());
            (Bound::Included(from), Bound::Excluded(to))
        };
        self.nodes
            .extract_if((from, to), |path, node| gone(path, node))
            .for_each(drop);
    }
}

/// What it takes to look a key up or to pass it by; keys are compared from their start.
fn work_of(key: &[u8]) -> u64 {
    1 + key.len() as u64 / 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Content;

    fn file(text: &str) -> Inode {
        Inode::file(0o644, Content::Bytes(text.into()))
    }

    fn link(target: &str) -> Inode {
        Inode::symlink(target.as_bytes())
    }

    fn at(path: &str) -> &Path {
        Path::new(path)
    }

    #[test]
    fn folders_come_by_themselves_and_before_what_is_in_them() {
        let mut tree = Tree::new();
        tree.insert(at("/usr/local/bin/app"), file("app")).unwrap();
        let paths: Vec<_> = tree
            .iter()
            .map(|(path, _)| str::from_utf8(path).unwrap())
            .collect();
        let expected = ["", "usr", "usr/local", "usr/local/bin", "usr/local/bin/app"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn one_place_holds_one_thing() {
        let mut tree = Tree::new();
        tree.insert(at("/tmp"), Inode::directory(0o1777)).unwrap();
        tree.insert(at("/a"), file("1")).unwrap();
        for path in ["/a", "/tmp", "/"] {
            let error = tree.insert(at(path), file("2")).unwrap_err();
            assert_eq!(error, TreeError::Taken(path.into()));
        }
        assert_eq!(
            tree.insert(at("/a/b"), file("2")),
            Err(TreeError::NoFolder("/a".into()))
        );
        assert_eq!(tree.insert(at("/tmp"), Inode::directory(0o755)), Ok(()));
        assert_eq!(tree.find(at("/tmp")), Some(&Inode::directory(0o1777)));
    }

    #[test]
    fn links_are_followed_as_the_guest_will() {
        let mut tree = Tree::new();
        tree.insert(at("/usr/lib"), Inode::directory(0o755))
            .unwrap();
        tree.insert(at("/lib"), link("usr/lib")).unwrap();
        tree.insert(at("/up"), link("../../usr")).unwrap();
        tree.insert(at("/lib/x/libc.so"), file("libc")).unwrap();
        tree.insert(at("/usr/lib/abs"), link("/lib/x/../x/libc.so"))
            .unwrap();
        for path in [
            "/usr/lib/x/libc.so",
            "/lib/x/libc.so",
            "/lib/abs",
            "/up/lib/abs",
        ] {
            assert_eq!(tree.find(at(path)), Some(&file("libc")), "{path}");
        }
        assert_eq!(tree.find(at("/lib/none")), None);
    }

    #[test]
    fn links_in_a_ring_end() {
        let mut tree = Tree::new();
        tree.insert(at("/a"), link("b")).unwrap();
        tree.insert(at("/b"), link("a")).unwrap();
        assert_eq!(tree.find(at("/a")), None);
        assert_eq!(
            tree.insert(at("/a/c"), file("")),
            Err(TreeError::Links("/a".into()))
        );
    }
}
