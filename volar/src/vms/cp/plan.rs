//! What is copied where, as `docker cp` has it: decided from what was typed and from what is there.

use std::path::PathBuf;

use volant_spec::Name;

/// One of the two sides of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    Guest {
        name: Name,
        path: String,
    },
    Here(PathBuf),
    /// A tar archive on standard input or output.
    Stream,
}

/// Why nothing can be copied so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("'{side}' is neither a path here nor NAME:/PATH: {why}")]
    Name { side: String, why: String },
    #[error("one of the two must be in a VM: NAME:/PATH")]
    NoGuest,
    #[error("both are in VMs; copy from one to here, and from here to the other")]
    TwoGuests,
    #[error("{dst} is no folder, and a folder cannot become a file")]
    FolderOntoFile { dst: String },
    #[error("there is no folder {dst}")]
    NoFolder { dst: String },
    #[error("{path} ends in '..'; name the folder itself")]
    Dots { path: String },
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    Nothing,
    /// Anything but a folder.
    File,
    Folder,
}

/// What is copied.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// As it was typed.
    pub path: &'a str,
    pub is_folder: bool,
}

/// Where what is copied goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A folder that is there.
    pub folder: String,
    /// What the source is called in it; nothing: what is in the source goes straight into the folder.
    pub top: Option<String>,
}

/// A side as it was typed: what has a ':' before any '/' is in a VM.
pub fn side(text: &str) -> Result<Side, PlanError> {
    if text == "-" {
        return Ok(Side::Stream);
    }
    match text.split_once(':') {
        Some((name, path)) if !name.contains('/') && !text.starts_with('.') => {
            let name = match name.parse::<Name>() {
                Ok(name) => name,
                Err(error) => {
                    return Err(PlanError::Name {
                        side: text.escape_debug().to_string(),
                        why: error.to_string(),
                    });
                }
            };
            let slash = if path.starts_with('/') { "" } else { "/" };
            Ok(Side::Guest {
                name,
                path: format!("{slash}{path}"),
            })
        }
        _ => Ok(Side::Here(text.into())),
    }
}

/// Whether what is in a folder is meant, and not the folder.
#[must_use]
pub fn means_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.") || path.trim_end_matches('/').is_empty()
}

/// Where a source goes when `there` is at the destination.
pub fn target(source: Source<'_>, dst: &str, there: There) -> Result<Target, PlanError> {
    let contents = means_contents(source.path);
    let shown = || dst.escape_debug().to_string();
    match there {
        There::Folder => Ok(Target {
            folder: dst.to_owned(),
            top: if contents {
                None
            } else {
                Some(base(source.path)?.to_owned())
            },
        }),
        There::File if source.is_folder => Err(PlanError::FolderOntoFile { dst: shown() }),
        There::File | There::Nothing if !source.is_folder && dst.ends_with('/') => {
            Err(PlanError::NoFolder { dst: shown() })
        }
        There::File | There::Nothing => Ok(Target {
            folder: parent(dst),
            top: Some(base(dst)?.to_owned()),
        }),
    }
}

/// The last part of a path.
fn base(path: &str) -> Result<&str, PlanError> {
    let last = path
        .trim_end_matches("/.")
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    match last {
        "" | "." | ".." => Err(PlanError::Dots {
            path: path.escape_debug().to_string(),
        }),
        last => Ok(last),
    }
}

fn parent(path: &str) -> String {
    let path = path.trim_end_matches("/.").trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", _)) => "/".to_owned(),
        Some((parent, _)) => parent.to_owned(),
        None => ".".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_in_a_vm_here_or_a_stream() {
        let guest = |name: &str, path: &str| Side::Guest {
            name: name.parse().unwrap(),
            path: path.to_owned(),
        };
        for (text, expected) in [
            ("-", Side::Stream),
            ("web:/etc", guest("web", "/etc")),
            ("web:etc", guest("web", "/etc")),
            ("web:", guest("web", "/")),
            ("web:/a:b", guest("web", "/a:b")),
            ("./web:x", Side::Here("./web:x".into())),
            ("/a:b", Side::Here("/a:b".into())),
            ("a/b:c", Side::Here("a/b:c".into())),
            ("file", Side::Here("file".into())),
        ] {
            assert_eq!(side(text), Ok(expected), "{text}");
        }
        assert!(side("WEB:/etc").is_err());
    }

    #[test]
    fn things_go_where_docker_puts_them() {
        use There::{File, Folder, Nothing};
        let into = |folder: &str, top: &str| {
            Ok(Target {
                folder: folder.to_owned(),
                top: (!top.is_empty()).then(|| top.to_owned()),
            })
        };
        let onto_file = Err(PlanError::FolderOntoFile {
            dst: "/d/x".to_owned(),
        });
        let cases = [
            // A file.
            ("/a/f", false, "/d/x", Nothing, into("/d", "x")),
            ("/a/f", false, "/d/x", File, into("/d", "x")),
            ("/a/f", false, "/d/x", Folder, into("/d/x", "f")),
            ("/a/f", false, "x", Nothing, into(".", "x")),
            ("/a/f", false, "/x", Nothing, into("/", "x")),
            ("/a/f", false, "/", Folder, into("/", "f")),
            // A folder.
            ("/a/d", true, "/d/x", Nothing, into("/d", "x")),
            ("/a/d", true, "/d/x/", Nothing, into("/d", "x")),
            ("/a/d", true, "/d/x", File, onto_file.clone()),
            ("/a/d", true, "/d/x", Folder, into("/d/x", "d")),
            ("/a/d/", true, ".", Folder, into(".", "d")),
            // What is in a folder.
            ("/a/d/.", true, "/d/x", Nothing, into("/d", "x")),
            ("/a/d/.", true, "/d/x", File, onto_file),
            ("/a/d/.", true, "/d/x", Folder, into("/d/x", "")),
            (".", true, "/d/x", Folder, into("/d/x", "")),
            ("/", true, "/d/x", Folder, into("/d/x", "")),
        ];
        for (path, is_folder, dst, there, expected) in cases {
            let source = Source { path, is_folder };
            assert_eq!(
                target(source, dst, there),
                expected,
                "{path} -> {dst} {there:?}"
            );
        }
        let file = Source {
            path: "f",
            is_folder: false,
        };
        for there in [Nothing, File] {
            let no_folder = Err(PlanError::NoFolder {
                dst: "/d/x/".to_owned(),
            });
            assert_eq!(target(file, "/d/x/", there), no_folder);
        }
        let dots = Source {
            path: "/a/..",
            is_folder: true,
        };
        assert!(target(dots, "/d", Folder).is_err());
    }
}
