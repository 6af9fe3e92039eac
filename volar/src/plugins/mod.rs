//! `volar plugins`, all but what changes the trusted keys of this host.

mod install;
mod manifest;
mod source;
pub(crate) mod unsigned;
mod view;

use serde_json::Value;
use volant_spec::PluginRef;

use crate::{
    Failures,
    args::{self, Plugins},
    client::Client,
    ended,
    failure::Failure,
    output::Output,
    view::read,
    waiting,
};
use view::{Checked, Collected, Found, Plugin, Trust};

pub async fn run(command: Plugins, client: &Client, output: &Output) -> Result<(), Failures> {
    match command {
        Plugins::Install(given) => Ok(install::run(&given, client, output).await?),
        Plugins::List => Ok(list(client, output).await?),
        Plugins::Show(given) => Ok(show(&given, client, output).await?),
        Plugins::Enable { plugins } => enable(&plugins, true, client, output).await,
        Plugins::Disable { plugins } => enable(&plugins, false, client, output).await,
        Plugins::Remove(given) => remove(&given, client, output).await,
        Plugins::Verify { plugin } => Ok(verify(plugin.as_ref(), client, output).await?),
        Plugins::Gc => Ok(collect(client.collect_garbage().await?, output)?),
        Plugins::Search { text } => {
            let text = text.unwrap_or_default();
            let spinner = waiting::spinner(output, "Searching the indexes");
            let found = client.search(&text).await;
            spinner.finish_and_clear();
            Ok(search(&found?, &text, output)?)
        }
        // The other two change this host, and were done before anyone was asked.
        Plugins::Trust(_) => Ok(trust(&client.trust().await?, output)?),
    }
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let answer = client.plugins().await?;
    let plugins: Vec<Plugin> = read(answer.clone())?;
    unsigned::warn(&plugins, client, output).await;
    if output.is_json() {
        return output.json(&answer);
    }
    if output.quiet {
        return output.names(&view::unambiguous(&plugins));
    }
    if plugins.is_empty() {
        return output.text("no plugins are installed; volar plugins install FILE|URL|NAME");
    }
    output.table(Plugin::COLUMNS, plugins.iter().map(Plugin::row).collect())
}

async fn show(given: &args::Show, client: &Client, output: &Output) -> Result<(), Failure> {
    if given.manifest {
        return output.bytes(&client.manifest(&given.plugin).await?);
    }
    let plugin = client.plugin(&given.plugin).await?;
    if output.is_json() {
        return output.json(&plugin);
    }
    output.json(&read::<Plugin>(plugin)?.manifest)
}

async fn enable(
    plugins: &[PluginRef],
    enabled: bool,
    client: &Client,
    output: &Output,
) -> Result<(), Failures> {
    let (mut changed, mut failures) = (Vec::new(), Vec::new());
    for plugin in plugins {
        match client.enable_plugin(plugin, enabled).await.and_then(read) {
            Ok::<Vec<Value>, _>(mut versions) => changed.append(&mut versions),
            Err(failure) => failures.push(failure),
        }
    }
    if output.is_json() {
        output.json(&changed)?;
    } else {
        let now = if enabled { "enabled" } else { "disabled" };
        for plugin in changed {
            let Plugin { name, version, .. } = read(plugin)?;
            output.done(&format!("plugin {name} {version} is {now}"))?;
        }
    }
    ended(failures)
}

async fn remove(given: &args::Remove, client: &Client, output: &Output) -> Result<(), Failures> {
    if let Some(plugin) = given
        .plugins
        .iter()
        .find(|plugin| given.all && plugin.version.is_some())
    {
        let name = &plugin.name;
        let told = format!("--all removes all versions: write '{name}' and not '{plugin}' with it");
        return Err(Failure::Usage(told).into());
    }
    let mut failures = Vec::new();
    for plugin in &given.plugins {
        let removed = client.remove_plugin(plugin, given.all).await;
        if let Err(failure) =
            removed.and_then(|()| output.done(&format!("plugin {plugin} is removed")))
        {
            failures.push(failure);
        }
    }
    ended(failures)
}

async fn verify(
    plugin: Option<&PluginRef>,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let spinner = waiting::spinner(output, "Reading what is installed");
    let mut answers = Vec::new();
    let mut found = |part: Value| {
        let Checked {
            plugin, version, ..
        } = read(part.clone())?;
        spinner.set_message(format!("Read of plugin {plugin} {version}"));
        answers.push(part);
        Ok(())
    };
    let verified = client.verify(plugin, &mut found).await;
    spinner.finish_and_clear();
    verified?;
    if output.is_json() {
        output.json(&answers)?;
    }
    let parts: Vec<Checked> = answers.into_iter().map(read).collect::<Result<_, _>>()?;
    let wrong = parts.iter().filter(|part| !part.ok).count();
    let shown: Vec<_> = parts
        .iter()
        .filter(|part| !output.quiet || !part.ok)
        .map(Checked::row)
        .collect();
    if parts.is_empty() {
        output.done("no plugins are installed")?;
    } else if !output.is_json() && !shown.is_empty() {
        output.table(Checked::COLUMNS, shown)?;
    }
    if wrong > 0 {
        let checked = parts.len();
        return Err(Failure::Unsound { wrong, checked });
    }
    Ok(())
}

fn collect(answer: Value, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&answer);
    }
    output.done(&read::<Collected>(answer)?.sentence())
}

fn search(answer: &Value, text: &str, output: &Output) -> Result<(), Failure> {
    let found: Found = read(answer.clone())?;
    for problem in &found.problems {
        output.warn(problem);
    }
    if output.is_json() {
        return output.json(answer);
    }
    if output.quiet {
        let names: Vec<_> = found
            .plugins
            .into_iter()
            .map(|plugin| plugin.name)
            .collect();
        return output.names(&names);
    }
    if found.plugins.is_empty() {
        return output.text(&if text.is_empty() {
            "there are no plugins in the configured indexes; /etc/volant/volant.toml lists them: [plugins] indexes"
                .to_owned()
        } else {
            format!("no configured index has a plugin with '{text}' in its name or description")
        });
    }
    let rows = found.plugins.iter().map(view::FoundPlugin::row).collect();
    output.table(view::FoundPlugin::COLUMNS, rows)
}

fn trust(answer: &Value, output: &Output) -> Result<(), Failure> {
    let trust: Trust = read(answer.clone())?;
    for problem in &trust.problems {
        output.warn(problem);
    }
    if let Some(warning) = trust.warning() {
        output.warn(warning);
    }
    if output.is_json() {
        return output.json(answer);
    }
    if output.quiet {
        let names: Vec<_> = trust.keys.into_iter().map(|key| key.name).collect();
        return output.names(&names);
    }
    output.text(&trust.sentence())?;
    if trust.keys.is_empty() {
        return Ok(());
    }
    output.text("")?;
    let rows = trust.keys.iter().map(view::TrustedKey::row).collect();
    output.table(view::TrustedKey::COLUMNS, rows)
}
