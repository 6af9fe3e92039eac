//! `volar plugins`.

use serde_json::Value;

use crate::{
    args::Plugins,
    client::Client,
    failure::Failure,
    install,
    output::Output,
    view::{self, Plugin},
};

pub async fn run(command: Plugins, client: &Client, output: &Output) -> Result<(), Failure> {
    match command {
        Plugins::Install(given) => {
            let installed = install::install(given.source(), client, output).await?;
            if output.is_json() {
                return output.json(&installed);
            }
            let Plugin { name, version, .. } = view::read(installed)?;
            output.done(&format!("plugin {name} {version} is installed"))
        }
        Plugins::List => list(client.plugins().await?, output),
        Plugins::Show { name } => {
            let plugin = client.plugin(&name).await?;
            if output.is_json() {
                return output.json(&plugin);
            }
            output.json(&view::read::<Plugin>(plugin)?.manifest)
        }
        Plugins::Remove { names } => {
            for name in names {
                client.remove_plugin(&name).await?;
                output.done(&format!("plugin {name} is removed"))?;
            }
            Ok(())
        }
    }
}

fn list(answer: Value, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&answer);
    }
    let plugins: Vec<Plugin> = view::read(answer)?;
    if output.quiet {
        let names: Vec<String> = plugins.into_iter().map(|plugin| plugin.name).collect();
        return output.names(&names);
    }
    if plugins.is_empty() {
        return output.text("no plugins are installed; volar plugins install FILE|URL");
    }
    output.table(Plugin::COLUMNS, plugins.iter().map(Plugin::row).collect())
}
