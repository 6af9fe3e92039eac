//! What an install is from: told by the words alone, and by which files there are.

use std::path::{Path, PathBuf};

use url::Url;
use volant_spec::PluginRef;

use crate::{args::Install, failure::Failure};

/// Where a plugin comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    Url(String),
    Oci(String),
    Name(PluginRef),
}

/// What was meant. `is_file` looks at the file system.
pub fn origin(given: &Install, is_file: impl Fn(&Path) -> bool) -> Result<Origin, Failure> {
    if let Some(name) = &given.name {
        return Ok(Origin::Name(name.clone()));
    }
    let (text, is_manifest) = match (&given.manifest, &given.source) {
        (Some(text), _) => (text.as_str(), true),
        (None, Some(text)) => (text.as_str(), false),
        (None, None) => ("", true),
    };
    if let Some(origin) = address(text)? {
        return Ok(origin);
    }
    if is_manifest || text.contains('/') || text.ends_with(".json") {
        return Ok(Origin::File(text.into()));
    }
    match (text.parse::<PluginRef>(), is_file(Path::new(text))) {
        (Ok(_), true) => Err(Failure::Usage(format!(
            "'{text}' is a file here, and could be the name of a plugin: write ./{text} for the file, \
             or --name {text} for the plugin"
        ))),
        (Ok(plugin), false) => Ok(Origin::Name(plugin)),
        (Err(_), true) => Ok(Origin::File(text.into())),
        (Err(error), false) => Err(Failure::Usage(format!(
            "'{}' is no file here, and no plugin can be named so: {error}",
            text.escape_debug()
        ))),
    }
}

/// What begins as an address does.
fn address(text: &str) -> Result<Option<Origin>, Failure> {
    let Some((scheme, _)) = text.split_once("://") else {
        return Ok(None);
    };
    match scheme {
        "http" | "https" => Ok(Some(Origin::Url(text.to_owned()))),
        "oci" => Ok(Some(Origin::Oci(text.to_owned()))),
        "file" => Url::parse(text)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .map(|path| Some(Origin::File(path)))
            .ok_or_else(|| {
                let text = text.escape_debug();
                Failure::Usage(format!("'{text}' is not file:///PATH"))
            }),
        _ => Err(Failure::Usage(format!(
            "'{}' is not http://, https://, oci://, file:/// or a path",
            text.escape_debug()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(source: Option<&str>, manifest: Option<&str>) -> Install {
        Install {
            source: source.map(str::to_owned),
            manifest: manifest.map(str::to_owned),
            name: None,
            signature: None,
            allow_downgrade: false,
        }
    }

    #[test]
    fn what_is_given_is_a_file_an_address_or_a_name() {
        let file = |path: &str| Origin::File(path.into());
        let cases = [
            ("caddy", Origin::Name("caddy".parse().unwrap())),
            ("caddy@2.6.2", Origin::Name("caddy@2.6.2".parse().unwrap())),
            ("./caddy", file("./caddy")),
            ("a/b", file("a/b")),
            ("caddy.json", file("caddy.json")),
            ("caddy.manifest", file("caddy.manifest")),
            ("file:///a/my%20m.json", file("/a/my m.json")),
            ("https://a/b", Origin::Url("https://a/b".to_owned())),
            ("http://a/b.json", Origin::Url("http://a/b.json".to_owned())),
            ("oci://a/b:1", Origin::Oci("oci://a/b:1".to_owned())),
        ];
        let is_file = |path: &Path| path == Path::new("caddy.manifest");
        for (text, expected) in cases {
            assert_eq!(
                origin(&given(Some(text), None), is_file).unwrap(),
                expected,
                "{text}"
            );
        }
        for (text, expected) in [
            ("caddy", file("caddy")),
            ("oci://a/b", Origin::Oci("oci://a/b".to_owned())),
            ("https://a/b", Origin::Url("https://a/b".to_owned())),
        ] {
            let given = given(None, Some(text));
            assert_eq!(origin(&given, |_| true).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_could_be_two_things_or_none_is_refused_with_what_to_write() {
        for (text, is_file, expected) in [
            ("caddy", true, "write ./caddy for the file, or --name caddy"),
            ("Caddy", false, "'Caddy' is no file here, and no plugin"),
            ("", false, "a name cannot be empty"),
            ("ftp://a/b", true, "'ftp://a/b' is not http://"),
            ("file://a", true, "not file:///PATH"),
        ] {
            let error = origin(&given(Some(text), None), |_| is_file).unwrap_err();
            assert_eq!(error.code(), 2);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }
}
