//! Whom a program runs as, by the image's own `/etc/passwd` and `/etc/group`, as container engines tell it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid};

use crate::files::{ReadError, read_bounded};

/// The most of a file that is looked at.
const LONGEST_FILE: u64 = 1024 * 1024;
/// The most groups that the kernel gives a process.
const MOST_GROUPS: usize = 65_536;

/// What a process is, for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: Uid,
    pub gid: Gid,
    /// The supplementary groups.
    pub groups: Vec<Gid>,
}

/// A user as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub identity: Identity,
    /// The folder that `/etc/passwd` names, or `/`.
    pub home: String,
    /// As `/etc/passwd` has it, else the number.
    pub name: String,
    /// The login shell; empty where `/etc/passwd` names none.
    pub shell: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("there is no {kind} '{name}' in {}", kind.file())]
    Absent { kind: Kind, name: String },
    #[error("{kind} number {number} is too large")]
    Number { kind: Kind, number: String },
    #[error("'{0}' is in too many groups")]
    Groups(String),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: ReadError },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    User,
    Group,
}

impl Kind {
    fn file(self) -> &'static str {
        match self {
            Self::User => "/etc/passwd",
            Self::Group => "/etc/group",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Group => "group",
        })
    }
}

/// Finds `USER[:GROUP]`, names or numbers, by the files below `root`.
///
/// # Errors
/// A name that is in neither file, or a file that cannot be read.
pub fn find(root: &Path, wanted: &str) -> Result<User, UserError> {
    let read = |kind: Kind| {
        let path = root.join(kind.file().trim_start_matches('/'));
        read_bounded(&path, LONGEST_FILE)
            .map(Option::unwrap_or_default)
            .map_err(|source| UserError::Read { path, source })
    };
    resolve(wanted, &read(Kind::User)?, &read(Kind::Group)?)
}

/// The folder of the user who has number 0; the usual one where the file does not tell.
#[must_use]
pub fn home_of_root(root: &Path) -> String {
    home_or_usual(find(root, "0").map_or_else(|_| String::new(), |user| user.home))
}

/// What the file tells of root's folder, or the usual one.
#[must_use]
pub fn home_or_usual(home: String) -> String {
    match home.as_str() {
        "" | "/" => "/root".to_owned(),
        _ => home,
    }
}

/// [`find`], given the text of both files. A number is a number even where a name is written like it, and need be in no file.
fn resolve(wanted: &str, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let (user, group_wanted) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = number(Kind::User, user)?;
    let entry = entries(passwd).find(|entry| match number {
        Some(number) => entry.number(2) == Some(number),
        None => entry.text(0) == Some(user),
    });
    let shell = entry.as_ref().and_then(|entry| entry.text(6));
    let (uid, gid, home, name) = match (&entry, number) {
        (Some(entry), _) => (
            entry.number(2).or(number),
            entry.number(3).unwrap_or(0),
            entry.text(5).filter(|home| home.starts_with('/')),
            entry.text(0),
        ),
        (None, number) => (number, 0, None, None),
    };
    let uid = uid.ok_or_else(|| UserError::Absent {
        kind: Kind::User,
        name: user.to_owned(),
    })?;
    let (gid, groups) = if group_wanted.is_empty() {
        (
            gid,
            name.map_or(Ok(Vec::new()), |name| member_of(name, group))?,
        )
    } else {
        (group_number(group_wanted, group)?, Vec::new())
    };
    Ok(User {
        identity: Identity {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: groups.into_iter().map(Gid::from_raw).collect(),
        },
        home: home.unwrap_or("/").to_owned(),
        name: name.map_or_else(|| uid.to_string(), str::to_owned),
        shell: shell.unwrap_or_default().to_owned(),
    })
}

fn group_number(wanted: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Some(number) = number(Kind::Group, wanted)? {
        return Ok(number);
    }
    entries(group)
        .filter(|entry| entry.text(0) == Some(wanted))
        .find_map(|entry| entry.number(2))
        .ok_or_else(|| UserError::Absent {
            kind: Kind::Group,
            name: wanted.to_owned(),
        })
}

fn member_of(name: &str, group: &[u8]) -> Result<Vec<u32>, UserError> {
    let mut groups: Vec<u32> = entries(group)
        .filter(|entry| {
            let members = entry.text(3).unwrap_or_default();
            members.split(',').any(|member| member.trim() == name)
        })
        .filter_map(|entry| entry.number(2))
        .collect();
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > MOST_GROUPS {
        return Err(UserError::Groups(name.to_owned()));
    }
    Ok(groups)
}

/// `text` as a number; `None` when it is a name.
fn number(kind: Kind, text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    parse(text).map(Some).ok_or_else(|| UserError::Number {
        kind,
        number: text.to_owned(),
    })
}

/// The kernel takes the largest numbers for "leave it as it is", and some programs for negative ones.
fn parse(text: &str) -> Option<u32> {
    text.parse()
        .ok()
        .filter(|number| i32::try_from(*number).is_ok())
}

/// A line of either file: fields between colons.
struct Entry<'a>(&'a [u8]);

impl<'a> Entry<'a> {
    fn text(&self, field: usize) -> Option<&'a str> {
        let bytes = self.0.split(|byte| *byte == b':').nth(field)?;
        std::str::from_utf8(bytes).ok().map(str::trim)
    }

    fn number(&self, field: usize) -> Option<u32> {
        parse(self.text(field)?)
    }
}

fn entries(file: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    file.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(Entry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"# people\nroot:x:0:0:root:/root:/bin/sh\n\nnginx:x:101:102:nginx:/var/cache/nginx:/sbin/nologin\n\
        broken\nhalf:x:\n7:x:1007:1007::/seven:\nlost:x:12:13::relative:\nbig:x:4294967295:1::/:\n\xff\xfe:x:9:9::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:nginx,root\nnginx:x:102:\nweb:x:33: nginx \nagain:x:4:nginx\nbad:x:x:nginx\n";

    #[track_caller]
    fn found(wanted: &str, uid: u32, gid: u32, groups: &[u32], home: &str) {
        let user = resolve(wanted, PASSWD, GROUP).unwrap();
        let identity = Identity {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: groups.iter().copied().map(Gid::from_raw).collect(),
        };
        assert_eq!((user.identity, &*user.home), (identity, home), "{wanted}");
    }

    #[test]
    fn names_and_numbers_are_found_as_container_engines_find_them() {
        found("nginx", 101, 102, &[4, 33], "/var/cache/nginx");
        found("101", 101, 102, &[4, 33], "/var/cache/nginx");
        found("nginx:web", 101, 33, &[], "/var/cache/nginx");
        found("nginx:7777", 101, 7777, &[], "/var/cache/nginx");
        found("nginx:", 101, 102, &[4, 33], "/var/cache/nginx");
        found("5000", 5000, 0, &[], "/");
        found("5000:web", 5000, 33, &[], "/");
        found("root", 0, 0, &[4], "/root");
        found(":web", 0, 33, &[], "/root");
        // A number, though a user is called so.
        found("7", 7, 0, &[], "/");
        found("lost", 12, 13, &[], "/");
    }

    #[test]
    fn a_user_has_a_name_and_perhaps_a_shell() {
        for (wanted, name, shell) in [
            ("0", "root", "/bin/sh"),
            ("nginx", "nginx", "/sbin/nologin"),
            ("12", "lost", ""),
            ("5000", "5000", ""),
        ] {
            let user = resolve(wanted, PASSWD, GROUP).unwrap();
            assert_eq!((&*user.name, &*user.shell), (name, shell), "{wanted}");
        }
    }

    #[test]
    fn who_is_not_there_is_named() {
        for (wanted, expected) in [
            ("nobody", "there is no user 'nobody' in /etc/passwd"),
            ("half", "there is no user 'half' in /etc/passwd"),
            ("big", "there is no user 'big' in /etc/passwd"),
            ("nginx:wheel", "there is no group 'wheel' in /etc/group"),
            ("nginx:bad", "there is no group 'bad' in /etc/group"),
            ("4294967295", "user number 4294967295 is too large"),
            ("0:2147483648", "group number 2147483648 is too large"),
            ("-1", "there is no user '-1' in /etc/passwd"),
        ] {
            let error = resolve(wanted, PASSWD, GROUP).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn without_the_files_there_are_numbers_alone() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(root.path(), "5:6").unwrap().identity.gid.as_raw(), 6);
        assert!(find(root.path(), "root").is_err());
        assert_eq!(home_of_root(root.path()), "/root");
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "toor:x:0:0::/home:\n").unwrap();
        assert_eq!(home_of_root(root.path()), "/home");
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let file = std::fs::File::create(root.path().join("etc/group")).unwrap();
        file.set_len(1 << 40).unwrap();
        let error = find(root.path(), "0").unwrap_err().to_string();
        assert!(error.ends_with("/etc/group"), "{error}");
    }

    proptest! {
        #[test]
        fn any_files_are_answered(
            wanted in "[a-z0-9:]{0,6}",
            passwd in prop::collection::vec(prop_oneof![Just(b':'), Just(b'\n'), Just(b'0'), Just(b'a'), any::<u8>()], 0..200),
            group in prop::collection::vec(prop_oneof![Just(b':'), Just(b'\n'), Just(b','), Just(b'0'), any::<u8>()], 0..200),
        ) {
            let _ = resolve(&wanted, &passwd, &group);
        }
    }
}
