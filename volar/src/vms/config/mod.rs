//! `volar vms config`, `secret` and `scale`: what a VM is to be from its next start on, or at once.

pub mod file;
mod patch;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde::Deserialize;
use serde_json::{Value, json};
use volant_spec::Name;

use crate::{
    args::{Config, Scale, Secrets, Set},
    client::Client,
    failure::Failure,
    output::{Output, Shown},
    view::{self, Vm},
    waiting,
};

/// A version of a configuration.
#[derive(Debug, Deserialize)]
struct Version {
    version: u64,
    created_at: String,
    reason: String,
    #[serde(default)]
    config: Value,
}

pub async fn run(config: Config, client: &Client, output: &Output) -> Result<(), Failure> {
    match config {
        Config::Get {
            name,
            version,
            effective,
        } => {
            let answer = client.config(&name, version).await?;
            if output.is_json() {
                return output.json(&answer);
            }
            let part = if effective { "effective" } else { "config" };
            // What is shown can be given to `set --file` again.
            output.json(&answer.get(part).cloned().unwrap_or_default())
        }
        Config::Set(set) => self::set(&set, client, output).await,
        Config::Edit { name } => edit(&name, client, output).await,
        Config::History { name } => history(client.config_history(&name).await?, output),
        Config::Rollback { name, version } => {
            let answer = client.rollback(&name, version).await?;
            told(&name, answer, client, output).await
        }
    }
}

async fn set(set: &Set, client: &Client, output: &Output) -> Result<(), Failure> {
    let answer = match &set.file {
        Some(file) => {
            let config = file::config(file)?;
            client
                .put_config(&set.name, &config, set.if_version)
                .await?
        }
        None => {
            let patch = patch::patch(&set.values).map_err(Failure::Usage)?;
            client
                .patch_config(&set.name, &patch, set.if_version)
                .await?
        }
    };
    told(&set.name, answer, client, output).await
}

/// Whoever else changes it in the meantime is not overwritten.
async fn edit(name: &Name, client: &Client, output: &Output) -> Result<(), Failure> {
    let before: Version = view::read(client.config(name, None).await?)?;
    let edited = edited(&before.config)?;
    if edited == before.config {
        return output.done(&format!("the configuration of VM {name} is as it was"));
    }
    let answer = client
        .put_config(name, &edited, Some(before.version))
        .await?;
    told(name, answer, client, output).await
}

fn edited(config: &Value) -> Result<Value, Failure> {
    let failed = |source| Failure::Io {
        act: "cannot write a file to edit".to_owned(),
        source,
    };
    let mut file = tempfile::Builder::new()
        .prefix("volar-")
        .suffix(".json")
        .tempfile()
        .map_err(failed)?;
    writeln!(file, "{config:#}").map_err(failed)?;
    let editor = ["VISUAL", "EDITOR"].into_iter().find_map(|variable| {
        std::env::var(variable)
            .ok()
            .filter(|editor| !editor.trim().is_empty())
    });
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // It may have arguments: `code --wait`.
    let mut words = editor.split_whitespace();
    let status = Command::new(words.next().unwrap_or("vi"))
        .args(words)
        .arg(file.path())
        .stdin(Stdio::inherit())
        .status()
        .map_err(|source| Failure::Io {
            act: format!("cannot run {editor}"),
            source,
        })?;
    if !status.success() {
        return Err(Failure::Usage(format!(
            "{editor} ended with {status}; nothing was changed"
        )));
    }
    file::config(file.path())
}

fn history(answer: Value, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&answer);
    }
    let versions: Vec<Version> = view::read(answer)?;
    let row = |version: Version| -> [Shown; 3] {
        [
            version.version.to_string().into(),
            version.created_at.into(),
            version.reason.into(),
        ]
    };
    output.table(
        ["VERSION", "CREATED", "REASON"],
        versions.into_iter().map(row).collect(),
    )
}

/// Says what the configuration is now, and from when on it holds.
async fn told(name: &Name, answer: Value, client: &Client, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&answer);
    }
    let version: Version = view::read(answer)?;
    let mut line = format!("VM {name} has configuration {}", version.version);
    if !output.quiet {
        let vm: Vm = view::read(client.vm(name).await?)?;
        if vm.restart_required {
            line.push_str(&format!(
                "; it holds from the next start: volar vms restart {name}"
            ));
        }
    }
    output.done(&line)
}

pub async fn secrets(secrets: Secrets, client: &Client, output: &Output) -> Result<(), Failure> {
    match secrets {
        Secrets::Set { name, secret, file } => {
            let value = file::secret(&file)?;
            client.put_secret(&name, &secret, value).await?;
            output.done(&format!(
                "VM {name} has the secret {secret} from its next start on"
            ))
        }
        Secrets::Remove { name, secret } => {
            client.remove_secret(&name, &secret).await?;
            output.done(&format!("the secret {secret} of VM {name} is removed"))
        }
        Secrets::List { name } => {
            let vm: Vm = view::read(client.vm(&name).await?)?;
            if output.is_json() {
                return output.json(&vm.secrets);
            }
            output.names(&vm.secrets)
        }
    }
}

pub async fn scale(scale: &Scale, client: &Client, output: &Output) -> Result<(), Failure> {
    let mut wanted = json!({"restart": scale.restart});
    if let Some(cpu) = scale.cpu {
        wanted["cpu_cores"] = cpu.into();
    }
    if let Some(memory) = scale.memory {
        wanted["memory_mb"] = memory.into();
    }
    let spinner = waiting::spinner(output, format!("Scaling VM {}", scale.name));
    let answer = client.scale(&scale.name, &wanted).await;
    spinner.finish_and_clear();
    let answer = answer?;
    if output.is_json() {
        return output.json(&answer);
    }
    let applied = answer["applied"].as_str().unwrap_or_default();
    let reason = answer["reason"]
        .as_str()
        .filter(|reason| !reason.is_empty());
    let vm: Vm = view::read(answer["vm"].clone())?;
    let size = format!("{} CPUs and {} MiB", vm.cpu_cores, vm.memory_mb);
    let name = &scale.name;
    let mut line = match applied {
        "live" => format!("VM {name} has {size} now"),
        "restarted" => format!("VM {name} was restarted with {size}"),
        "unchanged" => format!("VM {name} has {size} already"),
        _ => format!("VM {name} is changed with its next start: volar vms restart {name}"),
    };
    if let Some(reason) = reason {
        line.push_str(&format!(" ({reason})"));
    }
    output.done(&line)
}
