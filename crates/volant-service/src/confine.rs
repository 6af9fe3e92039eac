//! A child that sees only some of the host's files, by Landlock.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::Command,
};

use nix::libc;

/// `LANDLOCK_CREATE_RULESET_VERSION` and `LANDLOCK_RULE_PATH_BENEATH` of `linux/landlock.h`.
const ASK_VERSION: u32 = 1;
const PATH_BENEATH: libc::c_int = 1;
/// `LANDLOCK_ACCESS_FS_*`.
const EXECUTE: u64 = 1 << 0;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// How many kinds of access each version of Landlock knows; later ones know no less.
const KINDS: [u32; 5] = [13, 14, 15, 15, 16];

/// Has the command's children open nothing but what is below `readable`, to read it, and below `runnable`, to read or run
/// it. What they inherit stays open. They cannot gain privileges any more.
///
/// # Errors
/// This kernel has no Landlock, or it is switched off; or a path cannot be opened.
pub fn confine(command: &mut Command, readable: &[&Path], runnable: &[&Path]) -> io::Result<()> {
    let rules = ruleset()?;
    for path in readable {
        allow(&rules, path, READ_FILE | READ_DIR)?;
    }
    for path in runnable {
        allow(&rules, path, READ_FILE | READ_DIR | EXECUTE)?;
    }
    let restrict = move || restrict(rules.as_raw_fd());
    #[allow(unsafe_code, reason = "only the child may be confined")]
    // SAFETY: `restrict` makes two system calls, which are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(restrict);
    }
    Ok(())
}

fn ruleset() -> io::Result<OwnedFd> {
    #[allow(unsafe_code, reason = "a system call that no crate here has")]
    // SAFETY: with this flag the call takes no pointer.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u64>(),
            0_usize,
            ASK_VERSION,
        )
    };
    let version = usize::try_from(version).map_err(|_| io::Error::last_os_error())?;
    let known = KINDS.get(version.max(1) - 1).or(KINDS.last());
    let handled: u64 = (1 << known.copied().unwrap_or(0)) - 1;
    #[allow(unsafe_code, reason = "a system call that no crate here has")]
    // SAFETY: the kernel reads as many bytes of `handled` as is said; the descriptor that it gives is ours alone.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const handled,
            size_of_val(&handled),
            0_u32,
        );
        match RawFd::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// As `struct landlock_path_beneath_attr` is laid out.
#[repr(C, packed)]
struct Rule {
    access: u64,
    parent: RawFd,
}

fn allow(rules: &OwnedFd, path: &Path, access: u64) -> io::Result<()> {
    let parent = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)?;
    let is_folder = parent.metadata()?.is_dir();
    let rule = Rule {
        access: if is_folder {
            access
        } else {
            access & !READ_DIR
        },
        parent: parent.as_raw_fd(),
    };
    #[allow(unsafe_code, reason = "a system call that no crate here has")]
    // SAFETY: the rule is laid out as the kernel has it, and it and its descriptor outlive the call.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            PATH_BENEATH,
            &raw const rule,
            0_u32,
        )
    };
    if added == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn restrict(rules: RawFd) -> io::Result<()> {
    #[allow(unsafe_code, reason = "system calls on numbers alone")]
    // SAFETY: no pointer is passed.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_landlock_restrict_self, rules, 0_u32) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Runs `cat` on a file, confined to `folder` and to the host's programs.
    fn cat(folder: &Path, file: &Path) -> bool {
        let mut command = Command::new("/usr/bin/cat");
        let programs = ["/usr", "/lib", "/lib64"].map(Path::new);
        confine(&mut command, &[folder], &programs).unwrap();
        command.arg(file).output().unwrap().status.success()
    }

    #[test]
    fn a_confined_child_reads_what_it_may_and_nothing_else_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
        for path in [&inside, &outside] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), "text").unwrap();
        }
        assert!(cat(&inside, &inside.join("file")));
        assert!(!cat(&inside, &outside.join("file")));
        assert!(!cat(&inside, &inside.join("../outside/file")));

        let mut command = Command::new("/usr/bin/touch");
        let programs = ["/usr", "/lib", "/lib64"].map(Path::new);
        confine(&mut command, &[&inside], &programs).unwrap();
        let new = inside.join("new");
        assert!(!command.arg(&new).output().unwrap().status.success());
        assert!(!new.exists());
    }

    #[test]
    fn a_path_that_is_not_there_is_told() {
        let mut command = Command::new("/usr/bin/true");
        let error = confine(&mut command, &[Path::new("/nowhere")], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
