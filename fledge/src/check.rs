//! Whether the workload's program can be started in the tree at all: found here, not in a VM that fails.

use std::{
    fs::File,
    io::{self, Cursor},
    path::{Path, PathBuf},
};

use volant_layers::{Content, Kind, Tree};

use crate::elf::{self, Program};

/// Why the guest could not start the workload.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("workload.entrypoint: {} is not among the files; map it with [[file_mappings]]", .0.display())]
    Missing(PathBuf),
    #[error("workload.entrypoint: {} is no file", .0.display())]
    NoFile(PathBuf),
    #[error("workload.entrypoint: {} may not be executed; give its mapping mode = 0o755", .0.display())]
    Mode(PathBuf),
    #[error("workload.entrypoint: {} is no program for x86-64", .0.display())]
    NoProgram(PathBuf),
    #[error(
        "workload.entrypoint: {} needs {}, which is not among the files; map it and the libraries that `ldd` \
         lists, or build the program statically",
        program.display(), interpreter.display()
    )]
    Interpreter {
        program: PathBuf,
        interpreter: PathBuf,
    },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// Checks the program of an entrypoint. One without a `/` is searched by the guest, and not checked.
pub fn entrypoint(tree: &Tree, program: &str) -> Result<(), CheckError> {
    if !program.starts_with('/') {
        return Ok(());
    }
    let path = PathBuf::from(program);
    let inode = tree
        .find(&path)
        .ok_or_else(|| CheckError::Missing(path.clone()))?;
    let Kind::File(content) = &inode.kind else {
        return Err(CheckError::NoFile(path));
    };
    if inode.meta.mode & 0o111 == 0 {
        return Err(CheckError::Mode(path));
    }
    match started_by(content, &path)? {
        None | Some(Program::Static) => Ok(()),
        Some(Program::Dynamic(interpreter) | Program::Script(interpreter)) => {
            match tree.find(&interpreter).map(|found| &found.kind) {
                Some(Kind::File(_)) => Ok(()),
                _ => Err(CheckError::Interpreter {
                    program: path,
                    interpreter,
                }),
            }
        }
        Some(Program::Foreign | Program::Unknown) => Err(CheckError::NoProgram(path)),
    }
}

/// How the kernel starts a program; nothing for one in a layer, which is not read a third time for it.
fn started_by(content: &Content, guest_path: &Path) -> Result<Option<Program>, CheckError> {
    let (read, path) = match content {
        Content::Layer { .. } => return Ok(None),
        Content::Bytes(bytes) => (elf::program(Cursor::new(bytes)), guest_path),
        Content::File { path, .. } => (File::open(path).and_then(elf::program), path.as_path()),
    };
    read.map(Some).map_err(|source| CheckError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use volant_layers::Inode;

    use super::*;

    fn tree(mode: u32, bytes: &[u8]) -> Tree {
        let mut tree = Tree::new();
        let program = Inode::file(mode, Content::Bytes(bytes.to_vec()));
        tree.insert(Path::new("/bin/app"), program).unwrap();
        tree
    }

    #[test]
    fn a_workload_that_cannot_start_is_told_why() {
        let cases = [
            (tree(0o755, b""), "/bin/other", "not among the files"),
            (tree(0o755, b""), "/bin", "is no file"),
            (tree(0o644, b""), "/bin/app", "mode = 0o755"),
            (tree(0o755, b"text"), "/bin/app", "no program for x86-64"),
            (tree(0o755, b"#!/bin/sh\n"), "/bin/app", "needs /bin/sh"),
        ];
        for (tree, program, expected) in cases {
            let error = entrypoint(&tree, program).unwrap_err().to_string();
            assert!(error.contains(expected), "{program}: {error}");
        }
    }

    #[test]
    fn a_workload_that_can_start_is_let_through() {
        assert!(entrypoint(&tree(0o755, b"#!/bin/app\n"), "/bin/app").is_ok());
        assert!(entrypoint(&tree(0o644, b""), "app").is_ok());
    }
}
