//! The indexes that the administrator configured: plugins by name, from anyone's web server.

use std::sync::Arc;

use url::Url;
use volant_spec::{
    Digest, PluginRef,
    config::{ConfigError, WebUrl},
    index::{Entry, Index, IndexError},
};

use crate::{
    Registry,
    fetch::FetchError,
    install::{InstallError, is_web, shown, web_url},
    readings::{Reading, Unread},
    status::chain,
    store::{Plugin, PluginError},
};

/// The most plugins that a search answers.
const MOST_FOUND: usize = 500;
/// The most versions that are told of each.
const MOST_VERSIONS: usize = 50;
/// The longest description, in characters.
const LONGEST_DESCRIPTION: usize = 300;

/// A release that a name led to.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) plugin: PluginRef,
    /// Where its manifest is: an absolute URL, of whatever scheme.
    pub(crate) at: String,
    pub(crate) checksum: Option<Digest>,
    /// The index's URL, for people.
    pub(crate) index: String,
    /// Of indexes before it that could not be read.
    pub(crate) problems: Vec<String>,
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    pub plugins: Vec<Found>,
    /// For people.
    pub problems: Vec<String>,
}

/// A plugin in an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub description: String,
    /// The newest first.
    pub versions: Vec<String>,
    /// The index's URL.
    pub index: String,
    /// The versions that are installed here.
    pub installed: Vec<String>,
}

/// Why nothing was searched.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("cannot tell which indexes there are")]
    Config(#[from] ConfigError),
    #[error("no index can be read: {}", .0.join("; "))]
    Unreadable(Vec<String>),
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("cannot fetch the index {url}")]
    Fetch { url: String, source: FetchError },
    #[error("{url} is no index")]
    Parse { url: String, source: IndexError },
    #[error("'{0}' is no URL of an index")]
    Url(String),
}

impl Registry {
    /// Where the plugin is, by the first index that has its name. What comes after an index that cannot be read is believed
    /// only if `past_unreadable`.
    pub(crate) async fn look_up(
        &self,
        plugin: PluginRef,
        indexes: &[WebUrl],
        past_unreadable: bool,
    ) -> Result<Release, InstallError> {
        if indexes.is_empty() {
            return Err(InstallError::NoIndex(plugin));
        }
        let mut problems = Vec::new();
        for at in indexes {
            let (url, read) = match self.index(at).await {
                Ok(read) => read,
                Err(error) if past_unreadable => {
                    problems.push(chain(&error));
                    continue;
                }
                Err(error) => {
                    return Err(InstallError::IndexUnreadable {
                        plugin,
                        problem: chain(&error),
                    });
                }
            };
            let Some(release) = read.index.find(&plugin.name, plugin.version.as_ref()) else {
                if let Some(versions) = versions_of(&read.index, &plugin) {
                    // Another index's plugin of that name is another plugin.
                    return Err(InstallError::NotThatVersion {
                        index: shown(&url),
                        plugin,
                        versions,
                    });
                }
                continue;
            };
            let at = match url.join(&release.manifest) {
                Ok(joined) if is_web(&joined) => joined.into(),
                _ => release.manifest.clone(),
            };
            return Ok(Release {
                plugin: PluginRef {
                    name: plugin.name,
                    version: Some(release.version.clone()),
                },
                at,
                checksum: release.checksum,
                index: shown(&url),
                problems,
            });
        }
        if problems.len() == indexes.len() {
            return Err(InstallError::NoReadableIndex(problems));
        }
        Err(InstallError::NotInIndex { plugin, problems })
    }

    /// The plugins of all indexes whose name or description has that text in it.
    ///
    /// # Errors
    /// No index can be read, or the store failed.
    pub async fn search(&self, text: &str) -> Result<Search, SearchError> {
        let _busy = self.busy();
        let indexes = self.trust().await?.config.plugins.indexes;
        let installed = self.plugins(None).await?;
        let mut search = Search::default();
        if indexes.is_empty() {
            let none = "no index is configured; name one in volant.toml ([plugins], indexes)";
            search.problems.push(none.to_owned());
        }
        let (text, installed) = (Arc::<str>::from(text), Arc::new(installed));
        for at in &indexes {
            let (url, read) = match self.index(at).await {
                Ok(read) => read,
                Err(error) => {
                    search.problems.push(chain(&error));
                    continue;
                }
            };
            let (text, installed) = (Arc::clone(&text), Arc::clone(&installed));
            let room = MOST_FOUND - search.plugins.len();
            // One more than there is room for tells that there are more.
            let found = crate::blocking(move || {
                let found = read.index.search(&text).take(room + 1);
                let found = found.map(|entry| shown_to_people(entry, &shown(&url), &installed));
                found.collect::<Vec<_>>()
            });
            search.plugins.extend(found.await);
            if search.plugins.len() > MOST_FOUND {
                search.plugins.truncate(MOST_FOUND);
                let more = format!("there are more than {MOST_FOUND}; ask for something narrower");
                search.problems.push(more);
                return Ok(search);
            }
        }
        if !indexes.is_empty() && search.problems.len() == indexes.len() {
            return Err(SearchError::Unreadable(search.problems));
        }
        Ok(search)
    }

    async fn index(&self, at: &WebUrl) -> Result<(Url, Reading), ReadError> {
        let url = web_url(at.as_str()).ok_or_else(|| ReadError::Url(at.as_str().to_owned()))?;
        match self.readings().read(self.fetcher(), &url).await {
            Ok(read) => Ok((url, read)),
            Err(Unread::Fetch(source)) => Err(ReadError::Fetch {
                url: shown(&url),
                source,
            }),
            Err(Unread::Parse(source)) => Err(ReadError::Parse {
                url: shown(&url),
                source,
            }),
        }
    }
}

fn shown_to_people(entry: &Entry, index: &str, installed: &[Plugin]) -> Found {
    let description = entry.description.as_deref().unwrap_or_default();
    let installed = installed.iter().filter(|plugin| plugin.name == entry.name);
    Found {
        name: entry.name.to_string(),
        description: description.chars().take(LONGEST_DESCRIPTION).collect(),
        versions: newest(entry.versions.iter()),
        index: index.to_owned(),
        installed: installed.map(|plugin| plugin.version.to_string()).collect(),
    }
}

/// The versions that an index has of that name; `None` when it does not have the name.
fn versions_of(index: &Index, plugin: &PluginRef) -> Option<Vec<String>> {
    let entries = index.plugins.iter();
    let mut named = entries.filter(|entry| entry.name == plugin.name).peekable();
    named.peek()?;
    Some(newest(named.flat_map(|entry| &entry.versions)))
}

/// The newest first.
fn newest<'a>(releases: impl Iterator<Item = &'a volant_spec::index::Release>) -> Vec<String> {
    let mut versions: Vec<_> = releases.map(|one| &one.version).collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.truncate(MOST_VERSIONS);
    versions.into_iter().map(ToString::to_string).collect()
}
