//! What the guest's root holds: paths and what stands there. Decides; reads no file.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Component, Path, PathBuf},
};

/// The links that are followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Directory { mode: u32 },
    File { mode: u32, content: Content },
    Symlink { target: PathBuf },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Bytes(Vec<u8>),
    File { path: PathBuf, size: u64 },
}

/// The root of a guest. Paths in it are relative to the root; a folder stands before what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Node>);

/// Why something cannot stand where it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("/init is the agent of the guest, kestrel; choose another place")]
    Init,
    #[error("two things are to be at {}", .0.display())]
    Taken(PathBuf),
    #[error("{} is no folder, so nothing can be in it", .0.display())]
    NoFolder(PathBuf),
    #[error("the symbolic links of {} lead nowhere", .0.display())]
    Links(PathBuf),
}

impl Tree {
    /// The folders that every guest has, a console for its PID 1, and kestrel as `/init`.
    #[must_use]
    pub fn with_agent(kestrel: Content) -> Self {
        let mut nodes = BTreeMap::new();
        for (path, mode) in [
            ("dev", 0o755),
            ("etc", 0o755),
            ("proc", 0o555),
            ("root", 0o700),
            ("run", 0o755),
            ("sys", 0o555),
            ("tmp", 0o1777),
        ] {
            nodes.insert(PathBuf::from(path), Node::Directory { mode });
        }
        // Without it the kernel starts /init with no standard streams, before /dev can be mounted.
        let console = Node::CharDevice {
            mode: 0o600,
            major: 5,
            minor: 1,
        };
        nodes.insert(PathBuf::from("dev/console"), console);
        nodes.insert(
            PathBuf::from("init"),
            Node::File {
                mode: 0o755,
                content: kestrel,
            },
        );
        Self(nodes)
    }

    /// Puts a node at an absolute path; folders above it come by themselves. A folder that is there already
    /// stays as it is.
    ///
    /// # Errors
    /// Something else is there already, or a part of the path is no folder.
    pub fn insert(&mut self, path: &Path, node: Node) -> Result<(), TreeError> {
        let Some(name) = path.file_name() else {
            return match node {
                Node::Directory { .. } => Ok(()),
                _ => Err(TreeError::Taken(path.to_owned())),
            };
        };
        let parent = self.folder(path.parent().unwrap_or(path))?;
        let key = parent.join(name);
        match (self.0.get(&key), &node) {
            (None, _) => {
                self.0.insert(key, node);
                Ok(())
            }
            (Some(Node::Directory { .. }), Node::Directory { .. }) => Ok(()),
            (Some(Node::Symlink { .. }), Node::Directory { .. }) => self.folder(path).map(|_| ()),
            (Some(_), _) if key == Path::new("init") => Err(TreeError::Init),
            (Some(_), _) => Err(TreeError::Taken(path.to_owned())),
        }
    }

    /// What stands at an absolute path once symbolic links are followed.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<&Node> {
        let (found, rest) = self.walk(path).ok()?;
        if rest.is_empty() {
            self.0.get(&found)
        } else {
            None
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_path(), node))
    }

    /// The bytes of all files.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.values().map(Node::size).sum()
    }

    /// The key of the folder at an absolute path, made when missing.
    fn folder(&mut self, path: &Path) -> Result<PathBuf, TreeError> {
        let (mut found, missing) = self.walk(path)?;
        if !is_folder(&found, self.0.get(&found)) {
            return Err(TreeError::NoFolder(Path::new("/").join(found)));
        }
        for name in missing {
            found.push(name);
            self.0
                .insert(found.clone(), Node::Directory { mode: 0o755 });
        }
        Ok(found)
    }

    /// Follows an absolute path as far as it goes: the key of the last thing there is, and the missing names.
    fn walk(&self, path: &Path) -> Result<(PathBuf, Vec<std::ffi::OsString>), TreeError> {
        let mut links = 0;
        let mut found = PathBuf::new();
        let mut todo: Vec<_> = names(path);
        while let Some(name) = todo.pop() {
            if name == ".." {
                found.pop();
                continue;
            }
            let next = found.join(&name);
            match self.0.get(&next) {
                Some(Node::Symlink { target }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TreeError::Links(path.to_owned()));
                    }
                    if target.is_absolute() {
                        found = PathBuf::new();
                    }
                    todo.extend(names(target));
                }
                Some(_) => found = next,
                None => {
                    todo.push(name);
                    todo.reverse();
                    if todo.iter().any(|name| name == "..") {
                        return Err(TreeError::Links(path.to_owned()));
                    }
                    return Ok((found, todo));
                }
            }
        }
        Ok((found, Vec::new()))
    }
}

impl Node {
    fn size(&self) -> u64 {
        match self {
            Self::File {
                content: Content::Bytes(bytes),
                ..
            } => bytes.len() as u64,
            Self::File {
                content: Content::File { size, .. },
                ..
            } => *size,
            Self::Directory { .. } | Self::Symlink { .. } | Self::CharDevice { .. } => 0,
        }
    }
}

/// The root has no node of its own, and is a folder.
fn is_folder(key: &Path, node: Option<&Node>) -> bool {
    key == Path::new("") || matches!(node, Some(Node::Directory { .. }))
}

/// The names in a path, last first.
fn names(path: &Path) -> Vec<std::ffi::OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::new("..").to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .rev()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Node {
        Node::File {
            mode: 0o644,
            content: Content::Bytes(text.into()),
        }
    }

    fn link(target: &str) -> Node {
        Node::Symlink {
            target: target.into(),
        }
    }

    fn tree() -> Tree {
        Tree::with_agent(Content::Bytes(b"kestrel".to_vec()))
    }

    #[test]
    fn folders_come_by_themselves_and_before_what_is_in_them() {
        let mut tree = tree();
        tree.insert(Path::new("/usr/local/bin/app"), file("app"))
            .unwrap();
        let paths: Vec<_> = tree
            .iter()
            .map(|(path, _)| path.to_str().unwrap())
            .collect();
        let usr = ["usr", "usr/local", "usr/local/bin", "usr/local/bin/app"];
        assert!(paths.ends_with(&usr), "{paths:?}");
    }

    #[test]
    fn the_agent_cannot_be_replaced() {
        assert_eq!(
            tree().insert(Path::new("/init"), file("mine")),
            Err(TreeError::Init)
        );
    }

    #[test]
    fn one_place_holds_one_thing() {
        let mut tree = tree();
        tree.insert(Path::new("/a"), file("1")).unwrap();
        assert_eq!(
            tree.insert(Path::new("/a"), file("2")),
            Err(TreeError::Taken("/a".into()))
        );
        assert_eq!(
            tree.insert(Path::new("/a/b"), file("2")),
            Err(TreeError::NoFolder("/a".into()))
        );
        assert_eq!(
            tree.insert(Path::new("/etc"), file("2")),
            Err(TreeError::Taken("/etc".into()))
        );
        assert_eq!(
            tree.insert(Path::new("/"), file("2")),
            Err(TreeError::Taken("/".into()))
        );
        assert_eq!(
            tree.insert(Path::new("/tmp"), Node::Directory { mode: 0o755 }),
            Ok(())
        );
        assert_eq!(
            tree.find(Path::new("/tmp")),
            Some(&Node::Directory { mode: 0o1777 })
        );
    }

    #[test]
    fn links_are_followed_as_the_guest_will() {
        let mut tree = tree();
        tree.insert(Path::new("/usr/lib"), Node::Directory { mode: 0o755 })
            .unwrap();
        tree.insert(Path::new("/lib"), link("usr/lib")).unwrap();
        tree.insert(Path::new("/lib/x/libc.so"), file("libc"))
            .unwrap();
        tree.insert(Path::new("/usr/lib/abs"), link("/lib/x/../x/libc.so"))
            .unwrap();
        for path in ["/usr/lib/x/libc.so", "/lib/x/libc.so", "/lib/abs"] {
            assert_eq!(tree.find(Path::new(path)), Some(&file("libc")), "{path}");
        }
        assert_eq!(tree.find(Path::new("/lib/none")), None);
    }

    #[test]
    fn links_in_a_ring_end() {
        let mut tree = tree();
        tree.insert(Path::new("/a"), link("b")).unwrap();
        tree.insert(Path::new("/b"), link("a")).unwrap();
        assert_eq!(tree.find(Path::new("/a")), None);
        assert_eq!(
            tree.insert(Path::new("/a/c"), file("")),
            Err(TreeError::Links("/a".into()))
        );
    }
}
