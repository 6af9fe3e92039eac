//! The calls on plugins, their indexes and who may sign them.

use tonic::Streaming;
use volant_proto::registry::v1::{
    CollectGarbageRequest, CollectGarbageResponse, GetPluginRequest, GetTrustRequest,
    GetTrustResponse, InstallPluginRequest, InstallPluginResponse, ListPluginsRequest, Plugin,
    RemovePluginRequest, SearchPluginsRequest, SearchPluginsResponse, SetPluginEnabledRequest,
    VerifyPluginsRequest, VerifyPluginsResponse, install_plugin_request::Source,
};
use volant_spec::PluginRef;

use super::{Registry, there, told};
use crate::{Kind, Problem, refusal::Asked};

impl Registry {
    pub(crate) async fn plugins(&self) -> Result<Vec<Plugin>, Problem> {
        let answer =
            self.call(|mut client| async move { client.list_plugins(ListPluginsRequest {}).await });
        Ok(told(Asked::Plugin, answer.await)?.plugins)
    }

    pub(crate) async fn plugin(&self, plugin: &PluginRef) -> Result<Plugin, Problem> {
        let answer = self.call(|mut client| {
            let name = plugin.to_string();
            async move { client.get_plugin(GetPluginRequest { name }).await }
        });
        there(told(Asked::Plugin, answer.await)?.plugin)
    }

    /// Enables or disables a version, or all of them; gives those that it was about.
    pub(crate) async fn set_plugin_enabled(
        &self,
        plugin: &PluginRef,
        enabled: bool,
    ) -> Result<Vec<Plugin>, Problem> {
        let answer = self.call(|mut client| {
            let name = plugin.to_string();
            let request = SetPluginEnabledRequest { name, enabled };
            async move { client.set_plugin_enabled(request).await }
        });
        Ok(told(Asked::Plugin, answer.await)?.plugins)
    }

    /// Removes a version, or with `all_versions` all of them.
    pub(crate) async fn remove_plugin(
        &self,
        plugin: &PluginRef,
        all_versions: bool,
    ) -> Result<(), Problem> {
        let answer = self.call(|mut client| {
            let name = plugin.to_string();
            let request = RemovePluginRequest { name, all_versions };
            async move { client.remove_plugin(request).await }
        });
        let answer = answer.await;
        let repeated = answer.repeated;
        match told(Asked::RemovePlugin, answer) {
            // The first call removed it, and its answer was lost.
            Err(problem) if repeated && problem.kind == Kind::NoSuchPlugin => Ok(()),
            Err(problem) if problem.kind == Kind::PluginInUse && !all_versions => {
                Err(self.in_use_or_several(plugin, problem).await)
            }
            other => other.map(drop),
        }
    }

    /// registryd has one code for both refusals: VMs use it, or it was not said which version is meant.
    async fn in_use_or_several(&self, plugin: &PluginRef, problem: Problem) -> Problem {
        let versions = match &plugin.version {
            Some(_) => 1,
            None => self.plugins().await.map_or(0, |plugins| {
                let is_meant = |other: &&Plugin| other.name == plugin.name.as_str();
                plugins.iter().filter(is_meant).count()
            }),
        };
        if versions > 1 {
            Problem::new(Kind::SeveralVersions, problem.detail)
        } else {
            problem
        }
    }

    /// Begins an install; the answer is its progress, then the plugin.
    pub(crate) async fn install(
        &self,
        request: &InstallPluginRequest,
    ) -> Result<Streaming<InstallPluginResponse>, Problem> {
        let answer = self.call(|mut client| {
            let request = request.clone();
            async move { client.install_plugin(request).await }
        });
        told(of_install(request), answer.await)
    }

    /// Begins to read a plugin's artifacts again, or those of all plugins.
    pub(crate) async fn verify(
        &self,
        plugin: Option<&PluginRef>,
    ) -> Result<Streaming<VerifyPluginsResponse>, Problem> {
        let answer = self.call(|mut client| {
            let name = plugin.map(PluginRef::to_string).unwrap_or_default();
            async move { client.verify_plugins(VerifyPluginsRequest { name }).await }
        });
        told(Asked::Plugin, answer.await)
    }

    pub(crate) async fn collect_garbage(&self) -> Result<CollectGarbageResponse, Problem> {
        let answer = self.call(|mut client| async move {
            client.collect_garbage(CollectGarbageRequest {}).await
        });
        told(Asked::Upkeep, answer.await)
    }

    /// What the configured indexes have with that text in it.
    pub(crate) async fn search(&self, text: &str) -> Result<SearchPluginsResponse, Problem> {
        let answer = self.call(|mut client| {
            let text = text.to_owned();
            async move { client.search_plugins(SearchPluginsRequest { text }).await }
        });
        told(Asked::Search, answer.await)
    }

    pub(crate) async fn trust(&self) -> Result<GetTrustResponse, Problem> {
        let answer =
            self.call(|mut client| async move { client.get_trust(GetTrustRequest {}).await });
        told(Asked::Upkeep, answer.await)
    }
}

/// What an install asks for: a refusal means something else for each source.
pub(crate) fn of_install(request: &InstallPluginRequest) -> Asked {
    match &request.source {
        Some(Source::Name(_)) => Asked::InstallByName,
        Some(Source::OciReference(_)) => Asked::PullPlugin,
        Some(Source::Manifest(_) | Source::ManifestUrl(_)) | None => Asked::InstallPlugin,
    }
}
