//! Names from archives: which are taken, and how they are shown.

/// `PATH_MAX` of Linux, without the NUL.
pub(crate) const MAX_PATH: usize = 4095;
/// `NAME_MAX` of Linux.
pub(crate) const MAX_NAME: usize = 255;

/// Why a name is no path inside the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("its name is empty")]
    Empty,
    #[error("its name has a NUL in it")]
    Nul,
    #[error("its name is absolute, and would leave the root")]
    Absolute,
    #[error("its name has \"..\" in it, and could leave the root")]
    Above,
    #[error("its name is longer than the 4095 bytes of a path or the 255 of a name")]
    TooLong,
}

/// The path that a name means: no `./`, no `//`, no `/` at the end; empty for the root itself.
pub(crate) fn relative(name: &[u8]) -> Result<Vec<u8>, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.contains(&0) {
        return Err(NameError::Nul);
    }
    if name.len() > MAX_PATH {
        return Err(NameError::TooLong);
    }
    let mut path = Vec::with_capacity(name.len());
    for part in parts(name) {
        if part == b".." {
            return Err(NameError::Above);
        }
        if part.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
        push(&mut path, part);
    }
    // Some builders call the root itself "/".
    if name[0] == b'/' && !path.is_empty() {
        return Err(NameError::Absolute);
    }
    Ok(path)
}

/// The names in a path.
pub(crate) fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

/// A path's folder and its last name; the root is in itself.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Adds a name to a path.
pub(crate) fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Takes the last name off a path.
pub(crate) fn pop(path: &mut Vec<u8>) {
    path.truncate(split(path).0.len());
}

/// A name for people: what a terminal would obey is escaped.
#[must_use]
pub fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for char in String::from_utf8_lossy(name).chars() {
        if char.is_control() {
            text.extend(char.escape_default());
        } else {
            text.push(char);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_inside_the_root_or_refused() {
        type Case = (&'static [u8], Result<&'static [u8], NameError>);
        let cases: [Case; 12] = [
            (b"a", Ok(b"a")),
            (b"./a//b/./c/", Ok(b"a/b/c")),
            (b"./", Ok(b"")),
            (b"/", Ok(b"")),
            (b"...", Ok(b"...")),
            (b"\xff\n", Ok(b"\xff\n")),
            (b"", Err(NameError::Empty)),
            (b"a\0b", Err(NameError::Nul)),
            (b"/etc/passwd", Err(NameError::Absolute)),
            (b"//etc", Err(NameError::Absolute)),
            (b"../a", Err(NameError::Above)),
            (b"a/../b", Err(NameError::Above)),
        ];
        for (name, expected) in cases {
            let found = relative(name);
            assert_eq!(found.as_deref(), expected.as_deref(), "{}", shown(name));
        }
        assert_eq!(relative(&[b'a'; 256]), Err(NameError::TooLong));
        assert_eq!(relative(&b"a/".repeat(2048)), Err(NameError::TooLong));
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        assert_eq!(
            shown(b"a\x1b[2Jb\xc3\xa4\xff"),
            "a\\u{1b}[2Jb\u{e4}\u{fffd}"
        );
    }
}
