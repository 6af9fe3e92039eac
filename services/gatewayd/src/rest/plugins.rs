//! `/api/v1/plugins`, all but installs. A plugin in a path is `NAME` or `NAME@VERSION`.

use axum::{Json, extract::State, response::IntoResponse};
use http::{StatusCode, Uri, header::CONTENT_TYPE};
use serde::Deserialize;
use volant_proto::registry::v1 as wire;

use super::extract::{Plugged, query};
use crate::{Gateway, Problem, view::plugin::Plugin};

/// What a removal can be asked with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    #[serde(default)]
    all_versions: bool,
}

pub async fn list(State(gateway): State<Gateway>) -> Result<Json<Vec<Plugin>>, Problem> {
    views(gateway.registry().plugins().await?).map(Json)
}

pub async fn show(
    State(gateway): State<Gateway>,
    Plugged(plugin): Plugged,
) -> Result<Json<Plugin>, Problem> {
    let plugin = gateway.registry().plugin(&plugin).await?;
    plugin.try_into().map(Json)
}

/// The manifest's own bytes, as its signature covers them.
pub async fn manifest(
    State(gateway): State<Gateway>,
    Plugged(plugin): Plugged,
) -> Result<impl IntoResponse, Problem> {
    let plugin = gateway.registry().plugin(&plugin).await?;
    Ok(([(CONTENT_TYPE, "application/json")], plugin.manifest))
}

pub async fn remove(
    State(gateway): State<Gateway>,
    Plugged(plugin): Plugged,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let Remove { all_versions } = query(&uri)?;
    if all_versions && plugin.version.is_some() {
        let detail = format!("'{plugin}' is one version; 'all_versions' goes with a name alone");
        return Err(Problem::invalid(detail));
    }
    let registry = gateway.registry();
    registry.remove_plugin(&plugin, all_versions).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn enable(
    State(gateway): State<Gateway>,
    Plugged(plugin): Plugged,
) -> Result<Json<Vec<Plugin>>, Problem> {
    let plugins = gateway.registry().set_plugin_enabled(&plugin, true).await?;
    views(plugins).map(Json)
}

pub async fn disable(
    State(gateway): State<Gateway>,
    Plugged(plugin): Plugged,
) -> Result<Json<Vec<Plugin>>, Problem> {
    let plugins = gateway.registry().set_plugin_enabled(&plugin, false);
    views(plugins.await?).map(Json)
}

/// Plugins in a list, which has no manifests.
fn views(plugins: Vec<wire::Plugin>) -> Result<Vec<Plugin>, Problem> {
    let bare = |plugin| wire::Plugin {
        manifest: Vec::new(),
        ..plugin
    };
    plugins
        .into_iter()
        .map(bare)
        .map(Plugin::try_from)
        .collect()
}
