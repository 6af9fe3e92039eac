//! Where things are on the web, and how that is told to people.

use url::Url;
use volant_spec::manifest::{
    SIGNATURE_SUFFIX,
    location::{Location, artifact_location},
};

pub(crate) fn web_url(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(is_web)
}

/// Where an artifact is fetched from; `None` when that is nowhere on the web.
pub(super) fn artifact_url(text: &str, base: Option<&Url>) -> Option<Url> {
    match artifact_location(text).ok()? {
        Location::Web(text) => web_url(text),
        Location::Relative(path) => base?.join(path).ok().filter(is_web),
        Location::File(_) => None,
    }
}

/// Where the signature of the manifest at `url` is: beside it, whatever its query says.
pub(super) fn signature_url(url: &Url) -> Url {
    let mut beside = url.clone();
    beside.set_path(&format!("{}{SIGNATURE_SUFFIX}", url.path()));
    beside
}

/// A URL for people: what may be a secret in it is left out.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Refused only for URLs that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// Whether it is something that is fetched by http.
pub(crate) fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_come_from_the_web_or_nowhere() {
        let base = Url::parse("https://a.example/p/caddy.manifest.json?x=1").unwrap();
        let cases = [
            ("http://b.example/i", None, Some("http://b.example/i")),
            (
                "i.cpio.gz",
                Some(&base),
                Some("https://a.example/p/i.cpio.gz"),
            ),
            (
                "/i.cpio.gz",
                Some(&base),
                Some("https://a.example/i.cpio.gz"),
            ),
            ("i.cpio.gz", None, None),
            ("/etc/shadow", None, None),
            ("file:///etc/shadow", Some(&base), None),
            ("file:///etc/shadow", None, None),
            ("ftp://b.example/i", None, None),
            ("http://", None, None),
            ("a:1.squashfs", Some(&base), None),
            ("//b.example/i", Some(&base), None),
        ];
        for (text, base, expected) in cases {
            let url = artifact_url(text, base).map(String::from);
            assert_eq!(url.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_signature_is_beside_its_manifest_whatever_the_query() {
        let cases = [
            (
                "https://a.example/p/m.json",
                "https://a.example/p/m.json.minisig",
            ),
            (
                "https://a.example/m%20x.json?token=a/b#c",
                "https://a.example/m%20x.json.minisig?token=a/b#c",
            ),
        ];
        for (manifest, expected) in cases {
            let url = signature_url(&Url::parse(manifest).unwrap());
            assert_eq!(url.as_str(), expected);
        }
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        let url = Url::parse("https://me:secret@a.example/x?token=secret#secret").unwrap();
        assert_eq!(shown(&url), "https://a.example/x");
    }
}
