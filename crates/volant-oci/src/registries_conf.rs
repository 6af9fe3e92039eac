//! Mirrors, blocked and insecure registries, as containers-registries.conf(5) (version 2) tells them.
//!
//! Only `[[registry]]` and its mirrors are read: short names and search lists are not followed.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::reference::{Reference, check_repository, is_loopback};

/// What the host says of registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries {
    rules: Vec<Rule>,
}

/// Where a repository is really asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub host: String,
    pub repository: String,
    /// Plain http and untrusted certificates are accepted.
    pub insecure: bool,
}

/// Why the configuration of registries is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot read {} as a configuration of registries", path.display())]
    Parse {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("registries.conf blocks '{prefix}'")]
    Blocked { prefix: String },
    #[error("registries.conf sends it to '{location}', which is no HOST/REPOSITORY")]
    Location { location: String },
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Rule {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Mirror {
    location: String,
    insecure: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    registry: Vec<Rule>,
}

impl Registries {
    /// The calling user's: `$CONTAINERS_REGISTRIES_CONF`, else `containers/registries.conf` in the user's
    /// configuration, else in `/etc`; with the files of the `registries.conf.d` beside it.
    ///
    /// # Errors
    /// A file that is there cannot be read. That none is there is no error.
    pub fn from_env() -> Result<Self, RegistriesError> {
        let given = |name| env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = given("CONTAINERS_REGISTRIES_CONF") {
            return Self::read(Path::new(&path));
        }
        let user = given("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(given("HOME")?).join(".config")))
            .map(|dir| dir.join("containers"))
            .filter(|dir| dir.join("registries.conf").exists());
        Self::below(&user.unwrap_or_else(|| "/etc/containers".into()))
    }

    /// What this file alone says.
    ///
    /// # Errors
    /// It cannot be read. That it is not there is no error.
    pub fn read(path: &Path) -> Result<Self, RegistriesError> {
        Self::files(&[path.to_owned()])
    }

    fn below(dir: &Path) -> Result<Self, RegistriesError> {
        let mut files = vec![dir.join("registries.conf")];
        if let Ok(entries) = std::fs::read_dir(dir.join("registries.conf.d")) {
            let mut more: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|ending| ending == "conf"))
                .collect();
            more.sort();
            files.append(&mut more);
        }
        Self::files(&files)
    }

    fn files(paths: &[PathBuf]) -> Result<Self, RegistriesError> {
        let mut all = Self::default();
        for path in paths {
            let text = match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    let path = path.clone();
                    return Err(RegistriesError::Read { path, source });
                }
            };
            all.add(&text).map_err(|source| RegistriesError::Parse {
                path: path.clone(),
                source: Box::new(source),
            })?;
        }
        Ok(all)
    }

    /// Takes the rules of one file; a rule replaces an earlier one of the same prefix.
    fn add(&mut self, text: &str) -> Result<(), toml::de::Error> {
        for mut rule in toml::from_str::<Document>(text)?.registry {
            if rule.prefix.is_empty() {
                rule.prefix.clone_from(&rule.location);
            }
            self.rules.retain(|earlier| earlier.prefix != rule.prefix);
            self.rules.push(rule);
        }
        Ok(())
    }

    fn rule(&self, name: &str) -> Option<(&Rule, usize)> {
        self.rules
            .iter()
            .filter_map(|rule| Some((rule, covered(&rule.prefix, name)?)))
            .max_by_key(|(rule, _)| rule.prefix.len())
    }

    /// The places to ask, in order: the mirrors if `mirrors`, then the registry itself.
    pub(crate) fn endpoints(
        &self,
        reference: &Reference,
        mirrors: bool,
    ) -> Result<Vec<Endpoint>, EndpointError> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let Some((rule, covered)) = self.rule(&name) else {
            return Ok(vec![Endpoint {
                host: reference.registry().to_owned(),
                repository: reference.repository().to_owned(),
                insecure: false,
            }]);
        };
        if rule.blocked {
            return Err(EndpointError::Blocked {
                prefix: rule.prefix.clone(),
            });
        }
        let mut endpoints = Vec::new();
        if mirrors {
            for mirror in &rule.mirror {
                endpoints.push(moved(&name, covered, &mirror.location, mirror.insecure)?);
            }
        }
        endpoints.push(moved(&name, covered, &rule.location, rule.insecure)?);
        Ok(endpoints)
    }
}

impl Endpoint {
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

/// How many bytes of `name` the prefix covers, if it does.
fn covered(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next()?;
        return (domain.starts_with('.') && host.len() > domain.len() && host.ends_with(domain))
            .then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (!prefix.is_empty() && (rest.is_empty() || rest.starts_with('/'))).then_some(prefix.len())
}

fn moved(
    name: &str,
    covered: usize,
    location: &str,
    insecure: bool,
) -> Result<Endpoint, EndpointError> {
    let whole = match location.trim_end_matches('/') {
        "" => name.to_owned(),
        location => format!("{location}{}", &name[covered..]),
    };
    let refused = || EndpointError::Location {
        location: location
            .chars()
            .take(200)
            .flat_map(char::escape_debug)
            .collect(),
    };
    let (host, repository) = whole.split_once('/').ok_or_else(refused)?;
    check_repository(repository).map_err(|_| refused())?;
    // The rules for hosts are those of references.
    let checked: Reference = format!("oci://{host}/{repository}")
        .parse()
        .map_err(|_| refused())?;
    Ok(Endpoint {
        host: checked.registry().to_owned(),
        repository: repository.to_owned(),
        insecure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(text: &str) -> Registries {
        let mut registries = Registries::default();
        registries.add(text).unwrap();
        registries
    }

    fn places(registries: &Registries, reference: &str) -> Vec<String> {
        let endpoints = registries.endpoints(&reference.parse().unwrap(), true);
        endpoints
            .unwrap()
            .into_iter()
            .map(|at| {
                let mark = if at.insecure { "!" } else { "" };
                format!("{}/{}{mark}", at.host, at.repository)
            })
            .collect()
    }

    const CONF: &str = r#"
        unqualified-search-registries = ["docker.io"]
        short-name-mode = "enforcing"

        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.example/hub"
        [[registry.mirror]]
        location = "10.0.0.1:5000"
        insecure = true

        [[registry]]
        prefix = "docker.io/library/special"
        location = "elsewhere.example/moved"

        [[registry]]
        location = "lab.example:5000"
        insecure = true

        [[registry]]
        prefix = "*.wild.example"
        location = "wild.example/all"

        [[registry]]
        location = "bad.example"
        blocked = true
    "#;

    #[test]
    fn mirrors_are_asked_in_order_and_then_the_registry() {
        let registries = registries(CONF);
        let cases: &[(&str, &[&str])] = &[
            (
                "nginx",
                &[
                    "mirror.example/hub/library/nginx",
                    "10.0.0.1:5000/library/nginx!",
                    "docker.io/library/nginx",
                ],
            ),
            ("special", &["elsewhere.example/moved"]),
            ("specials", &places_of_hub("specials")),
            ("lab.example:5000/a", &["lab.example:5000/a!"]),
            ("lab.example/a", &["lab.example/a"]),
            ("x.wild.example/a", &["wild.example/all/a"]),
            ("wild.example/a", &["wild.example/a"]),
        ];
        for (reference, expected) in cases {
            assert_eq!(places(&registries, reference), *expected, "{reference}");
        }
    }

    fn places_of_hub(name: &str) -> [&'static str; 3] {
        assert_eq!(name, "specials");
        [
            "mirror.example/hub/library/specials",
            "10.0.0.1:5000/library/specials!",
            "docker.io/library/specials",
        ]
    }

    #[test]
    fn a_push_goes_to_the_registry_itself() {
        let reference = "nginx".parse().unwrap();
        let endpoints = registries(CONF).endpoints(&reference, false).unwrap();
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].host, "docker.io");
    }

    #[test]
    fn a_blocked_registry_and_a_bad_location_are_named() {
        let blocked = registries(CONF).endpoints(&"bad.example/x".parse().unwrap(), true);
        assert!(blocked.unwrap_err().to_string().contains("bad.example"));
        let odd = registries("[[registry]]\nprefix = 'a.example'\nlocation = 'b.example?x='");
        let error = odd.endpoints(&"a.example/x".parse().unwrap(), true);
        assert!(error.unwrap_err().to_string().contains("b.example?x="));
    }

    #[test]
    fn a_drop_in_replaces_the_rule_of_the_same_prefix() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("registries.conf.d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("registries.conf", "[[registry]]\nlocation = 'a.example'\n");
        write(
            "registries.conf.d/50-lab.conf",
            "[[registry]]\nprefix = 'a.example'\nlocation = 'b.example'\n",
        );
        write("registries.conf.d/note.txt", "not TOML");
        let registries = Registries::below(dir.path()).unwrap();
        assert_eq!(places(&registries, "a.example/x"), ["b.example/x"]);
    }
}
