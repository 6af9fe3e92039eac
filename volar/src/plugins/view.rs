//! What the API gives of plugins, as far as people are shown it. Unknown fields are no trouble: the API may grow.

use comfy_table::Color;
use serde::Deserialize;

use crate::{
    output::{Shown, bytes},
    view::or_dash,
};

/// As many versions of a found plugin are shown.
const VERSIONS: usize = 3;

#[derive(Clone, Debug, Deserialize)]
pub struct Plugin {
    pub name: String,
    pub version: String,
    pub enabled: bool,
    pub installed_at: String,
    pub size_bytes: u64,
    pub signed_by: Option<SignedBy>,
    #[serde(default)]
    pub warnings: Vec<String>,
    #[serde(default)]
    pub manifest: serde_json::Value,
}

#[derive(Clone, Debug, Deserialize)]
pub struct SignedBy {
    pub key: String,
    pub key_id: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Checked {
    pub plugin: String,
    pub version: String,
    pub subject: String,
    pub ok: bool,
    pub detail: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Collected {
    pub artifacts: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Found {
    pub plugins: Vec<FoundPlugin>,
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct FoundPlugin {
    pub name: String,
    pub description: Option<String>,
    pub versions: Vec<String>,
    pub installed: Vec<String>,
    pub index: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Trust {
    pub policy: String,
    pub keys: Vec<TrustedKey>,
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TrustedKey {
    pub name: String,
    pub key_id: String,
    pub plugins: Vec<String>,
    pub comment: Option<String>,
}

/// The plugins' names; with the version where a name has several.
pub fn unambiguous(plugins: &[Plugin]) -> Vec<String> {
    let versions = |name: &str| plugins.iter().filter(|plugin| plugin.name == name).count();
    let name = |plugin: &Plugin| match versions(&plugin.name) {
        1 => plugin.name.clone(),
        _ => format!("{}@{}", plugin.name, plugin.version),
    };
    plugins.iter().map(name).collect()
}

impl Plugin {
    pub const COLUMNS: [&str; 6] = [
        "NAME",
        "VERSION",
        "ENABLED",
        "SIZE",
        "SIGNED BY",
        "INSTALLED",
    ];

    pub fn row(&self) -> [Shown; 6] {
        let enabled = if self.enabled {
            Shown::from("yes")
        } else {
            coloured("no", Color::Yellow)
        };
        let signed_by = match &self.signed_by {
            Some(signed) => signed.key.as_str().into(),
            None => coloured("-", Color::Yellow),
        };
        [
            self.name.as_str().into(),
            self.version.as_str().into(),
            enabled,
            bytes(self.size_bytes).into(),
            signed_by,
            self.installed_at.as_str().into(),
        ]
    }

    /// What an install came to.
    pub fn sentence(&self) -> String {
        let signed = match &self.signed_by {
            Some(SignedBy { key, key_id }) => format!("signed by {key} ({key_id})"),
            None => "no trusted signature".to_owned(),
        };
        let disabled = if self.enabled { "" } else { ", disabled" };
        let size = bytes(self.size_bytes);
        format!(
            "plugin {} {} is installed ({size}, {signed}{disabled})",
            self.name, self.version
        )
    }
}

impl Checked {
    pub const COLUMNS: [&str; 5] = ["PLUGIN", "VERSION", "PART", "STATE", "DETAIL"];

    pub fn row(&self) -> [Shown; 5] {
        let state = if self.ok {
            coloured("ok", Color::Green)
        } else {
            coloured("WRONG", Color::Red)
        };
        [
            self.plugin.as_str().into(),
            self.version.as_str().into(),
            self.subject.as_str().into(),
            state,
            self.detail.as_deref().unwrap_or_default().into(),
        ]
    }
}

impl Collected {
    pub fn sentence(&self) -> String {
        let freed = bytes(self.bytes);
        match (self.artifacts, self.bytes) {
            (0, 0) => "there was nothing to remove".to_owned(),
            (0, _) => {
                format!("what was left of broken downloads is removed, {freed} are free again")
            }
            (1, _) => format!("1 artifact is removed, {freed} are free again"),
            (many, _) => format!("{many} artifacts are removed, {freed} are free again"),
        }
    }
}

impl FoundPlugin {
    pub const COLUMNS: [&str; 5] = ["NAME", "VERSIONS", "INSTALLED", "DESCRIPTION", "INDEX"];

    pub fn row(&self) -> [Shown; 5] {
        let mut versions = self
            .versions
            .iter()
            .take(VERSIONS)
            .cloned()
            .collect::<Vec<_>>();
        if let Some(more @ 1..) = self.versions.len().checked_sub(VERSIONS) {
            versions.push(format!("and {more} more"));
        }
        let installed = self.installed.join(", ");
        [
            self.name.as_str().into(),
            versions.join(", ").into(),
            or_dash(Some(installed.as_str()).filter(|text| !text.is_empty())),
            self.description.as_deref().unwrap_or_default().into(),
            self.index.as_str().into(),
        ]
    }
}

impl Trust {
    pub fn sentence(&self) -> String {
        let means = match (self.policy.as_str(), self.keys.is_empty()) {
            ("require", false) => "a plugin must be signed with one of these keys",
            ("require", true) => {
                "a plugin must be signed, and no key is trusted: volar plugins trust add KEY|FILE"
            }
            ("warn", _) => "a plugin that none of these keys signed is installed with a warning",
            ("off", _) => "signatures are not looked at",
            _ => "this volar does not know that policy",
        };
        format!("signatures = \"{}\": {means}", self.policy)
    }

    /// What is said loudly of a policy that lets unsigned plugins in.
    pub fn warning(&self) -> Option<&'static str> {
        match self.policy.as_str() {
            "warn" => Some("plugins that nobody trusted has signed can be installed here"),
            "off" => Some("signatures of plugins are not checked here: anyone's plugin runs"),
            _ => None,
        }
    }
}

impl TrustedKey {
    pub const COLUMNS: [&str; 4] = ["NAME", "KEY ID", "PLUGINS", "COMMENT"];

    pub fn row(&self) -> [Shown; 4] {
        [
            self.name.as_str().into(),
            self.key_id.as_str().into(),
            self.plugins.join(", ").into(),
            self.comment.as_deref().unwrap_or_default().into(),
        ]
    }
}

fn coloured(text: &str, colour: Color) -> Shown {
    Shown {
        text: text.to_owned(),
        colour: Some(colour),
    }
}
