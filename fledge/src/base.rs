//! What programs expect in a root that has no distribution in it: a few files of `/etc`, and busybox.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use volant_layers::{Content, Inode, Tree, TreeError};

use crate::{
    elf::{self, Program},
    recipe::{Base, Busybox},
};

const FILES: &[(&str, &str)] = &[
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    (
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    (
        "/etc/os-release",
        "ID=volant-plugin\nNAME=\"Volant plugin\"\nPRETTY_NAME=\"Volant plugin\"\n",
    ),
];

/// Where the host has its busybox, in the order in which they are tried.
const HOSTS_BUSYBOX: &[&str] = &["/usr/bin/busybox", "/bin/busybox"];

/// Why the base could not be put in.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(
        "base.busybox = true needs a busybox on this machine: install the package busybox-static, or give its path"
    )]
    NoBusybox,
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no static program for x86-64; the package busybox-static has one", .0.display())]
    NotStatic(PathBuf),
    #[error("{} does not list its commands: it is no busybox", .0.display())]
    List(PathBuf),
    #[error("cannot put the base in")]
    Place(#[from] TreeError),
}

/// Puts the base in, where nothing is yet. Paths are relative to `folder`.
pub fn add(tree: &mut Tree, base: &Base, folder: &Path) -> Result<(), BaseError> {
    if base.files {
        for (path, text) in FILES {
            add_missing(
                tree,
                path,
                Inode::file(0o644, Content::Bytes((*text).into())),
            )?;
        }
    }
    let path = match &base.busybox {
        Busybox::Wanted(false) => return Ok(()),
        Busybox::Wanted(true) => {
            let found = HOSTS_BUSYBOX
                .iter()
                .map(PathBuf::from)
                .find(|path| path.exists());
            found.ok_or(BaseError::NoBusybox)?
        }
        Busybox::Path(path) => folder.join(path),
    };
    busybox(tree, &path)
}

fn busybox(tree: &mut Tree, path: &Path) -> Result<(), BaseError> {
    let failed = |source| BaseError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if elf::program(file).map_err(failed)? != Program::Static {
        return Err(BaseError::NotStatic(path.to_owned()));
    }
    // The file itself knows its commands; it is about to be trusted with a guest.
    let list = Command::new(path)
        .arg("--list-full")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(failed)?;
    let text = String::from_utf8_lossy(&list.stdout);
    let commands: Vec<&str> = text.lines().filter(|line| is_command(line)).collect();
    if !list.status.success() || commands.is_empty() {
        return Err(BaseError::List(path.to_owned()));
    }
    let content = Content::File {
        path: path.to_owned(),
        size,
    };
    add_missing(tree, "/bin/busybox", Inode::file(0o755, content))?;
    for command in commands {
        add_missing(
            tree,
            &format!("/{command}"),
            Inode::symlink(b"/bin/busybox"),
        )?;
    }
    Ok(())
}

/// `bin/ls`, `usr/sbin/chroot`: a relative path of plain names. The agent is init, and `linuxrc` was one.
fn is_command(line: &str) -> bool {
    line.contains('/')
        && !matches!(line, "sbin/init" | "bin/busybox")
        && line.split('/').all(|name| {
            !matches!(name, "" | "." | "..")
                && !name.contains(|c: char| c.is_control() || c.is_whitespace())
        })
}

fn add_missing(tree: &mut Tree, path: &str, inode: Inode) -> Result<(), TreeError> {
    let path = Path::new(path);
    if tree.find(path).is_some() {
        return Ok(());
    }
    match tree.insert(path, inode) {
        // A link that leads nowhere: it is the image's own matter.
        Err(TreeError::Taken(_)) => Ok(()),
        other => other,
    }
}
