//! Where an artifact is, by what its manifest has as `url`: the same for whoever reads it, a file's name or a part of a URL.

/// Where an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location<'a> {
    /// A path from where the manifest is, a folder or a web server.
    Relative(&'a str),
    /// `http://` or `https://`.
    Web(&'a str),
    /// `file://`.
    File(&'a str),
}

/// Why text does not say where an artifact is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("the URL of an artifact is empty")]
    Empty,
    #[error(
        "the artifact URL '{}' has '{}' in it, which a file's name and a URL do not mean alike: rename the file, or give \
         an http://, https:// or file:// URL",
        .url.escape_debug(),
        .character.escape_debug()
    )]
    Ambiguous { url: String, character: char },
    #[error(
        "the artifact URL '{}' begins with '//', which is a folder in one place and a server in another",
        .0.escape_debug()
    )]
    TwoSlashes(String),
    #[error("the artifact URL '{}' begins or ends with a blank", .0.escape_debug())]
    Blank(String),
}

const WEB: [&str; 2] = ["http://", "https://"];
const FILE: &str = "file://";
/// What means something in URLs that it does not in a file's name.
const AMBIGUOUS: [char; 5] = [':', '?', '#', '%', '\\'];

/// Where an artifact with that `url` is.
///
/// # Errors
/// It is of another scheme, or means something else to whoever takes it for a file's name than for a part of a URL.
pub fn artifact_location(url: &str) -> Result<Location<'_>, LocationError> {
    let found = |characters: &dyn Fn(char) -> bool| match url.chars().find(|c| characters(*c)) {
        Some(character) => Err(LocationError::Ambiguous {
            url: url.to_owned(),
            character,
        }),
        None => Ok(()),
    };
    let begins = |scheme: &str| {
        let head = url.get(..scheme.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(scheme))
    };
    if url.is_empty() {
        return Err(LocationError::Empty);
    }
    found(&char::is_control)?;
    if url.trim() != url {
        return Err(LocationError::Blank(url.to_owned()));
    }
    if WEB.into_iter().any(begins) {
        return Ok(Location::Web(url));
    }
    if begins(FILE) {
        return Ok(Location::File(url));
    }
    found(&|character| AMBIGUOUS.contains(&character))?;
    if url.starts_with("//") {
        return Err(LocationError::TwoSlashes(url.to_owned()));
    }
    Ok(Location::Relative(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_on_the_web_a_file_or_beside_its_manifest() {
        use Location::{File, Relative, Web};
        type Is = fn(&'static str) -> Location<'static>;
        let cases: [(&str, Is); 9] = [
            ("https://a.example/i%20x?token=a#b", Web),
            ("http://[::1]:8080/i", Web),
            ("HTTPS://a.example/i", Web),
            ("file:///srv/i", File),
            ("i.cpio.gz", Relative),
            ("../files/caddy 1.0~rc1+x.squashfs", Relative),
            ("/srv/i", Relative),
            ("http", Relative),
            ("ä", Relative),
        ];
        for (url, expected) in cases {
            assert_eq!(artifact_location(url), Ok(expected(url)), "{url}");
        }
    }

    #[test]
    fn what_means_two_things_is_refused_with_what_does() {
        let cases = [
            ("", "is empty"),
            ("app:1.squashfs", "has ':' in it"),
            ("app?.squashfs", "has '?' in it"),
            ("app#1.squashfs", "has '#' in it"),
            ("100%.squashfs", "has '%' in it"),
            ("a\\b", "has '\\\\' in it"),
            ("a\nb", "has '\\n' in it"),
            ("https://a.example/\tb", "has '\\t' in it"),
            ("ftp://a.example/i", "has ':' in it"),
            ("file:i", "has ':' in it"),
            ("//a.example/i", "begins with '//'"),
            (" i", "begins or ends with a blank"),
        ];
        for (url, part) in cases {
            let error = artifact_location(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
        }
    }
}
