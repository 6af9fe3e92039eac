//! The indexes that the administrator configured: plugins by name, from anyone's web server.

use url::Url;
use volant_spec::{
    Digest, PluginRef,
    config::{ConfigError, WebUrl},
    index::{Index, IndexError, MAX_BYTES},
};

use crate::{
    Registry,
    fetch::FetchError,
    install::{InstallError, is_web, shown, web_url},
    status::chain,
    store::PluginError,
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
    /// Where the plugin is, by the first index that has it.
    pub(crate) async fn look_up(
        &self,
        plugin: PluginRef,
        indexes: &[WebUrl],
    ) -> Result<Release, InstallError> {
        if indexes.is_empty() {
            return Err(InstallError::NoIndex(plugin));
        }
        let mut problems = Vec::new();
        for at in indexes {
            let (url, index) = match self.index(at).await {
                Ok(read) => read,
                Err(error) => {
                    problems.push(chain(&error));
                    continue;
                }
            };
            let Some(release) = index.find(&plugin.name, plugin.version.as_ref()) else {
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
        for at in &indexes {
            let (url, index) = match self.index(at).await {
                Ok(read) => read,
                Err(error) => {
                    search.problems.push(chain(&error));
                    continue;
                }
            };
            for entry in index.search(text) {
                if search.plugins.len() == MOST_FOUND {
                    let more =
                        format!("there are more than {MOST_FOUND}; ask for something narrower");
                    search.problems.push(more);
                    return Ok(search);
                }
                let mut versions: Vec<_> = entry.versions.iter().map(|one| &one.version).collect();
                versions.sort_by(|a, b| b.cmp(a));
                versions.truncate(MOST_VERSIONS);
                let description = entry.description.as_deref().unwrap_or_default();
                search.plugins.push(Found {
                    name: entry.name.to_string(),
                    description: description.chars().take(LONGEST_DESCRIPTION).collect(),
                    versions: versions.into_iter().map(ToString::to_string).collect(),
                    index: shown(&url),
                    installed: installed
                        .iter()
                        .filter(|plugin| plugin.name == entry.name)
                        .map(|plugin| plugin.version.to_string())
                        .collect(),
                });
            }
        }
        if !indexes.is_empty() && search.problems.len() == indexes.len() {
            return Err(SearchError::Unreadable(search.problems));
        }
        Ok(search)
    }

    async fn index(&self, at: &WebUrl) -> Result<(Url, Index), ReadError> {
        let url = web_url(at.as_str()).ok_or_else(|| ReadError::Url(at.as_str().to_owned()))?;
        let fetched = self.fetcher().small(&url, MAX_BYTES).await;
        let bytes = fetched.map_err(|source| ReadError::Fetch {
            url: shown(&url),
            source,
        })?;
        let index = Index::parse(&bytes).map_err(|source| ReadError::Parse {
            url: shown(&url),
            source,
        })?;
        Ok((url, index))
    }
}
