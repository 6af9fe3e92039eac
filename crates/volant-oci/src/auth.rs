//! Credentials for registries, from where skopeo, podman and docker keep them. They are never shown: not by `Debug`,
//! not in an error.

use std::{
    collections::BTreeMap,
    env, fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use crate::image::shown;

const MAX_FILE: u64 = 1024 * 1024;
const MAX_HELPER_ANSWER: u64 = 1024 * 1024;
/// What docker calls its own registry in these files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Where to look for credentials.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    files: Vec<PathBuf>,
    helpers: bool,
}

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Password { user: String, password: String },
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::IdentityToken(_) => "IdentityToken(…)",
        })
    }
}

/// What there is for a repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub credential: Option<Credential>,
    /// A helper that a file names, as of another machine, and that is not installed here.
    pub missing_helper: Option<String>,
}

/// Why credentials could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("cannot read the credentials in {}{}", path.display(), remedy(path, source))]
    Read { path: PathBuf, source: io::Error },
    // The source of this error would quote the file.
    #[error("{} is no file of credentials: line {line} is not the JSON that is expected there", path.display())]
    Parse { path: PathBuf, line: usize },
    #[error("the credentials for {key} in {} are no base64 of USER:PASSWORD; log in anew", path.display())]
    Entry { path: PathBuf, key: String },
    #[error("cannot run the credential helper {name}")]
    Helper { name: String, source: io::Error },
    #[error("the credential helper {name} gave no credentials for {registry}: {why}")]
    HelperAnswer {
        name: String,
        registry: String,
        why: &'static str,
    },
}

/// What `podman login` writes as root is root's alone, and registryd is not root.
fn remedy(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let path = path.display();
    format!(" (if registryd is to: chgrp volant-registry {path} && chmod 640 {path})")
}

impl Credentials {
    /// Nobody's: every registry is asked without a login.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// This file alone, and no credential helper is ever run.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            files: vec![path.into()],
            helpers: false,
        }
    }

    /// Where the calling user's are: `$REGISTRY_AUTH_FILE` alone if it is set, else `containers/auth.json` in
    /// `$XDG_RUNTIME_DIR` (without one, `/run/containers/UID/auth.json`) and the configuration, and docker's
    /// `config.json`. The first that has something is taken; a helper that is not installed has nothing.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            files: files(
                &|name| env::var_os(name).filter(|value| !value.is_empty()),
                rustix::process::geteuid().as_raw(),
            ),
            helpers: true,
        }
    }

    /// What there is for `repository` at `registry`.
    pub(crate) async fn lookup(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Found, AuthError> {
        let mut found = Found::default();
        for path in &self.files {
            let Some(file) = read(path)? else { continue };
            if self.helpers
                && let Some(name) = file.helper(registry)
            {
                match ask_helper(name, registry).await {
                    Err(AuthError::Helper { name, source })
                        if source.kind() == io::ErrorKind::NotFound =>
                    {
                        found.missing_helper.get_or_insert(name);
                    }
                    answer => found.credential = answer?,
                }
            }
            if found.credential.is_none()
                && let Some((key, entry)) = file.entry(registry, repository)
            {
                found.credential = entry.credential().map_err(|()| AuthError::Entry {
                    path: path.clone(),
                    key: shown(key),
                })?;
            }
            if found.credential.is_some() {
                break;
            }
        }
        Ok(found)
    }
}

fn files(env: &dyn Fn(&str) -> Option<std::ffi::OsString>, user: u32) -> Vec<PathBuf> {
    if let Some(path) = env("REGISTRY_AUTH_FILE") {
        return vec![path.into()];
    }
    let home = env("HOME").map(PathBuf::from);
    // Without a session, as in a container or with sudo, skopeo and podman write their logins below /run.
    let runtime = env("XDG_RUNTIME_DIR").map_or_else(
        || format!("/run/containers/{user}/auth.json").into(),
        |dir| Path::new(&dir).join("containers/auth.json"),
    );
    let config = env("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = env("DOCKER_CONFIG").map(PathBuf::from);
    [
        Some(runtime),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
        home.map(|dir| dir.join(".docker/config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn read(path: &Path) -> Result<Option<AuthFile>, AuthError> {
    let failed = |source| AuthError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let parsed = serde_json::from_slice(&text).map_err(|error| AuthError::Parse {
        path: path.to_owned(),
        line: error.line(),
    })?;
    Ok(Some(parsed))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthFile {
    auths: BTreeMap<String, Option<Entry>>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl AuthFile {
    /// The longest key that `registry/repository` is at or below.
    fn entry(&self, registry: &str, repository: &str) -> Option<(&str, &Entry)> {
        let full = format!("{registry}/{repository}");
        let covers = |key: &str| {
            full.strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.auths
            .iter()
            .filter_map(|(key, entry)| Some((key.as_str(), normal_key(key), entry.as_ref()?)))
            .filter(|(_, key, _)| covers(key))
            .max_by_key(|(_, key, _)| key.len())
            .map(|(key, _, entry)| (key, entry))
    }

    fn helper(&self, registry: &str) -> Option<&str> {
        self.helpers
            .iter()
            .find(|(key, _)| normal_key(key) == registry)
            .map(|(_, name)| name)
            .or(self.store.as_ref())
            .filter(|name| !name.is_empty())
            .map(String::as_str)
    }
}

/// Docker writes a registry as a URL, where the path means nothing.
fn normal_key(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let key = match bare {
        Some(bare) => bare.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/'),
    };
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    match path {
        "" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, ()> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let decoded = STANDARD.decode(auth.trim()).map_err(|_| ())?;
            let text = String::from_utf8(decoded).map_err(|_| ())?;
            let (user, password) = text.split_once(':').ok_or(())?;
            return Ok(Some(Credential::Password {
                user: user.to_owned(),
                // Docker once padded it.
                password: password.trim_end_matches('\0').to_owned(),
            }));
        }
        Ok(given(&self.username)
            .zip(self.password.clone())
            .map(|(user, password)| Credential::Password { user, password }))
    }
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Runs `docker-credential-NAME get`. `None` when it has nothing for this registry.
async fn ask_helper(name: &str, registry: &str) -> Result<Option<Credential>, AuthError> {
    let refused = |why| AuthError::HelperAnswer {
        name: shown(name),
        registry: registry.to_owned(),
        why,
    };
    if !name
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
    {
        return Err(refused("its name is none"));
    }
    let failed = |source| AuthError::Helper {
        name: name.to_owned(),
        source,
    };
    let mut child = tokio::process::Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let server = if registry == "docker.io" {
        DOCKER_HUB
    } else {
        registry
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read what it is asked will say so by its answer.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        use tokio::io::AsyncReadExt as _;
        let mut stdout = stdout.take(MAX_HELPER_ANSWER);
        stdout.read_to_end(&mut answer).await.map_err(failed)?;
    }
    if !child.wait().await.map_err(failed)?.success() {
        // By the protocol, this is how a helper says that it has nothing.
        return Ok(None);
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&answer).map_err(|_| refused("its answer is not JSON"))?;
    Ok(match (answer.user.as_str(), answer.secret) {
        ("" | "<token>", secret) if !secret.is_empty() => Some(Credential::IdentityToken(secret)),
        (_, secret) if secret.is_empty() => None,
        (user, password) => Some(Credential::Password {
            user: user.to_owned(),
            password,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> AuthFile {
        serde_json::from_str(text).unwrap()
    }

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password {
            user: user.into(),
            password: password.into(),
        }
    }

    #[test]
    fn the_longest_key_that_covers_a_repository_is_taken() {
        let auth = |text: &str| STANDARD.encode(text);
        let file = file(&format!(
            r#"{{"auths": {{
                "quay.io": {{"auth": "{}"}},
                "quay.io/team": {{"auth": "{}"}},
                "quay.io/team/app": {{"auth": "{}"}},
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "http://old.example/v2/": {{"username": "u", "password": "p"}},
                "token.example": {{"identitytoken": "t"}},
                "empty.example": {{}}, "null.example": null
            }}}}"#,
            auth("host:1"),
            auth("team:2:3"),
            auth("app:4"),
            auth("hub:5"),
        ));
        let cases = [
            ("quay.io", "other/x", Some(password("host", "1"))),
            ("quay.io", "team/x", Some(password("team", "2:3"))),
            ("quay.io", "team/app", Some(password("app", "4"))),
            ("quay.io", "team/app/sub", Some(password("app", "4"))),
            ("quay.io", "team/application", Some(password("team", "2:3"))),
            ("docker.io", "library/nginx", Some(password("hub", "5"))),
            ("old.example", "x", Some(password("u", "p"))),
            (
                "token.example",
                "x",
                Some(Credential::IdentityToken("t".into())),
            ),
            ("empty.example", "x", None),
            ("null.example", "x", None),
            ("quay.io.example", "x", None),
        ];
        for (registry, repository, expected) in cases {
            let found = file
                .entry(registry, repository)
                .and_then(|(_, entry)| entry.credential().unwrap());
            assert_eq!(found, expected, "{registry}/{repository}");
        }
    }

    #[test]
    fn a_helper_for_the_registry_comes_before_the_store() {
        let file = file(r#"{"credHelpers": {"gcr.io": "gcloud"}, "credsStore": "pass"}"#);
        assert_eq!(file.helper("gcr.io"), Some("gcloud"));
        assert_eq!(file.helper("quay.io"), Some("pass"));
    }

    #[test]
    fn no_secret_is_in_a_debug_text_or_an_error() {
        assert!(!format!("{:?}", password("bob", "hunter2")).contains("hunter2"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(&path, r#"{"auths": {"a.example": {"auth": hunter2}}}"#).unwrap();
        let error = read(&path).err().unwrap();
        assert!(
            !format!("{error:?} {error}").contains("hunter2"),
            "{error:?}"
        );
    }

    #[test]
    fn what_only_its_owner_can_read_is_told_with_its_remedy() {
        let told = |kind: io::ErrorKind| remedy(Path::new("/e/a.json"), &kind.into());
        let expected = "chgrp volant-registry /e/a.json && chmod 640 /e/a.json";
        assert!(told(io::ErrorKind::PermissionDenied).contains(expected));
        assert_eq!(told(io::ErrorKind::IsADirectory), "");
    }

    #[test]
    fn a_broken_entry_says_which_to_renew() {
        let entry = Entry {
            auth: Some("%%%".into()),
            ..Entry::default()
        };
        assert_eq!(entry.credential(), Err(()));
    }

    #[test]
    fn the_files_are_those_of_skopeo_and_docker() {
        let lookup = |names: &'static [(&'static str, &'static str)]| {
            let env = |name: &str| {
                let found = names.iter().find(|(key, _)| *key == name)?;
                Some(found.1.into())
            };
            files(&env, 1000)
        };
        assert_eq!(
            lookup(&[("REGISTRY_AUTH_FILE", "/a.json"), ("HOME", "/h")]),
            [PathBuf::from("/a.json")]
        );
        let several = lookup(&[
            ("XDG_RUNTIME_DIR", "/r"),
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
        ]);
        let expected = [
            "/r/containers/auth.json",
            "/h/.config/containers/auth.json",
            "/d/config.json",
            "/h/.docker/config.json",
        ];
        assert_eq!(several, expected.map(PathBuf::from));
        let no_session = ["/run/containers/1000/auth.json", "/h/.docker/config.json"];
        let found = lookup(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/c")]);
        assert_eq!([&found[0], &found[2]], no_session.map(Path::new));
    }

    #[tokio::test]
    async fn a_file_given_runs_no_helper_and_a_missing_helper_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [path, next] = ["auth.json", "next.json"].map(|name| dir.path().join(name));
        std::fs::write(&path, r#"{"credsStore": "there-is-no-such-helper"}"#).unwrap();
        let found = Credentials::file(&path).lookup("a.example", "x").await;
        assert_eq!(found.unwrap(), Found::default());
        let entry = r#"{"auths": {"a.example": {"username": "u", "password": "p"}}}"#;
        std::fs::write(&next, entry).unwrap();
        let helped = Credentials {
            files: vec![path, next],
            helpers: true,
        };
        for (registry, credential) in [("a.example", Some(password("u", "p"))), ("b.example", None)]
        {
            let missing_helper = Some("there-is-no-such-helper".to_owned());
            let expected = Found {
                credential,
                missing_helper,
            };
            let found = helped.lookup(registry, "x").await;
            assert_eq!(found.unwrap(), expected, "{registry}");
        }
    }
}
