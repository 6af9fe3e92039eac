//! What is said of plugins that came in while signatures were not required: they go on making VMs when they are.

use volant_spec::PluginRef;

use super::view::{Plugin, Trust};
use crate::{
    client::Client,
    output::Output,
    view::{Vm, read},
};

/// Warns of a plugin that a VM was made of. Best effort: the VM is there.
pub async fn of_vm(vm: &Vm, client: &Client, output: &Output) {
    let Ok(plugin) = format!("{}@{}", vm.plugin, vm.plugin_version).parse::<PluginRef>() else {
        return;
    };
    if let Ok(Ok(plugin)) = client.plugin(&plugin).await.map(read::<Plugin>) {
        warn(&[plugin], client, output).await;
    }
}

/// Warns of those of the plugins that make VMs though the host would not let them in today. Best effort.
pub async fn warn(plugins: &[Plugin], client: &Client, output: &Output) {
    let unsigned: Vec<String> = plugins
        .iter()
        .filter(|plugin| plugin.enabled && plugin.signed_by.is_none())
        .map(|plugin| format!("{}@{}", plugin.name, plugin.version))
        .collect();
    if unsigned.is_empty() {
        return;
    }
    let trust = client.trust().await.map(read::<Trust>);
    if matches!(trust, Ok(Ok(trust)) if trust.policy == "require") {
        output.warn(&format!(
            "no trusted signature, though one is required for an install now: {}; VMs are still made of what is \
             installed: install it again signed, or volar plugins disable NAME@VERSION",
            unsigned.join(", ")
        ));
    }
}
