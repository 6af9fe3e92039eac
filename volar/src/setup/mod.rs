//! `volar setup`: looks at the host, says what is missing, and changes what is Volant's own to change.
//!
//! [`facts`] looks, [`report`] and [`config`] decide, and this file does. It can be run again at any time.

pub mod config;
mod facts;
mod report;

use std::{
    fs, io,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use comfy_table::Color;
use serde::Serialize;
use volant_spec::config::{PATH, SignaturePolicy, TRUST_DIR};

use crate::{
    args,
    failure::Failure,
    output::{Output, Shown},
    trust,
};
use config::Plan;
use facts::Facts;
use report::{Check, Level};

/// What setup enables and starts.
const UNITS: [&str; 6] = [
    "volant-ipamd.socket",
    "volant-ipamd-nft.socket",
    "volant-ipamd-link.socket",
    "volant-registryd.socket",
    "volant-gatewayd.socket",
    "volant.target",
];

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    /// What was done, or would be.
    actions: Vec<String>,
    dry_run: bool,
    ready: bool,
}

/// Checks the host; when nothing required is missing, writes the configuration and starts the sockets.
///
/// # Errors
/// Not root, something required is missing, or a step failed.
pub fn run(wanted: &args::Setup, output: &Output) -> Result<(), Failure> {
    let root = nix::unistd::geteuid().is_root();
    if !wanted.dry_run && !root {
        return Err(Failure::NotRoot);
    }
    let written = read_config()?;
    let (config, plan) = config::plan(written.as_deref(), wanted.bridge.as_ref(), wanted.subnet)?;
    let facts = Facts::gather(&config, &UNITS);
    let checks = report::checks(&facts, &config.network);
    let missing: Vec<String> = checks
        .iter()
        .filter(|check| check.level == Level::Missing)
        .map(|check| check.name.clone())
        .collect();
    if !output.is_json() {
        show(&checks, output)?;
    }
    match config.plugins.signatures {
        SignaturePolicy::Require => {}
        policy => output.warn(&format!(
            "signatures = \"{}\" in {PATH}: plugins that nobody trusted signed run on this host",
            policy.as_str()
        )),
    }
    let ready = missing.is_empty();
    let actions = match (ready, wanted.dry_run) {
        (false, _) => Vec::new(),
        (true, true) => intended(&plan, &facts),
        (true, false) => carry_out(&plan, &facts)?,
    };
    if output.is_json() {
        output.json(&Report {
            checks,
            actions,
            dry_run: wanted.dry_run,
            ready,
        })?;
    } else if ready {
        conclude(&actions, &facts, wanted.dry_run, output)?;
    }
    if ready {
        Ok(())
    } else {
        Err(Failure::NotReady(format!("{} missing", missing.join(", "))))
    }
}

fn show(checks: &[Check], output: &Output) -> Result<(), Failure> {
    if output.quiet {
        return Ok(());
    }
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut lines = Vec::new();
    for Check {
        name,
        level,
        found,
        fix,
    } in checks
    {
        let (word, colour) = match level {
            Level::Ok => ("ok", Color::Green),
            Level::Warn => ("warn", Color::Yellow),
            Level::Missing => ("missing", Color::Red),
        };
        let word = output.painted(&Shown {
            text: format!("{word:7}"),
            colour: Some(colour),
        });
        lines.push(format!("{word}  {name:width$}  {found}"));
        if let Some(fix) = fix {
            lines.push(format!("{:9}{:width$}  -> {fix}", "", ""));
        }
    }
    output.lines(&lines)
}

fn conclude(
    actions: &[String],
    facts: &Facts,
    dry_run: bool,
    output: &Output,
) -> Result<(), Failure> {
    output.done("")?;
    for action in actions {
        output.done(action)?;
    }
    if dry_run {
        return output.done("nothing was changed (--dry-run)");
    }
    output.done("Volant is ready: volar plugins install FILE|URL|NAME")?;
    match &facts.outsider {
        Some(user) => output.done(&format!(
            "to use volar without root: sudo usermod -aG volant {user}, then log in again (or: newgrp volant)"
        )),
        None => Ok(()),
    }
}

fn intended(plan: &Plan, facts: &Facts) -> Vec<String> {
    let mut actions = vec![match plan {
        Plan::Keep => format!("would keep {PATH} as it is"),
        Plan::Create(_) => format!("would write {PATH}"),
        Plan::Change(_) => {
            format!("would change bridge and subnet in {PATH}, and restart ipamd if it runs")
        }
    }];
    if !facts.trust_folder {
        actions.push(format!("would create {TRUST_DIR}"));
    }
    actions.push(if facts.active {
        format!(
            "would leave {} as they are: enabled and active",
            UNITS.join(", ")
        )
    } else {
        format!("would enable and start {}", UNITS.join(", "))
    });
    actions
}

fn carry_out(plan: &Plan, facts: &Facts) -> Result<Vec<String>, Failure> {
    let mut actions = Vec::new();
    match plan {
        Plan::Keep => actions.push(format!("kept {PATH} as it is")),
        Plan::Create(text) => {
            write_config(Path::new(PATH), text)?;
            actions.push(format!("wrote {PATH}"));
        }
        Plan::Change(text) => {
            write_config(Path::new(PATH), text)?;
            // It reads its configuration when it starts.
            systemctl(&["try-restart", "volant-ipamd.service"])?;
            actions.push(format!("changed bridge and subnet in {PATH}"));
        }
    }
    if !facts.trust_folder {
        let folder = Path::new(TRUST_DIR);
        trust::make_folder(folder).map_err(|source| Failure::Io {
            act: format!("cannot create {TRUST_DIR}"),
            source,
        })?;
        actions.push(format!("created {TRUST_DIR}"));
    }
    if facts.active {
        actions.push(format!("{} are enabled and active", UNITS.join(", ")));
    } else {
        let mut arguments = vec!["enable", "--now"];
        arguments.extend(UNITS);
        systemctl(&arguments)?;
        actions.push(format!("enabled and started {}", UNITS.join(", ")));
    }
    Ok(actions)
}

fn read_config() -> Result<Option<String>, Failure> {
    match fs::read_to_string(PATH) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Failure::Io {
            act: format!("cannot read {PATH}"),
            source,
        }),
    }
}

/// Writes the file whole or not at all: the services read it at any time, as users of their own. So everyone can read
/// it and reach it, whatever the umask.
fn write_config(path: &Path, text: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let write = || {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| Failure::Io {
        act: format!("cannot write {}", path.display()),
        source,
    })
}

fn systemctl(arguments: &[&str]) -> Result<(), Failure> {
    let command = format!("systemctl {}", arguments.join(" "));
    let ended = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let ended = ended.map_err(|source| Failure::Io {
        act: format!("cannot run {command}"),
        source,
    })?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr)
        .trim()
        .replace('\n', "; ");
    Err(Failure::Command { command, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_can_read_the_configuration_whatever_the_umask() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("volant");
        let path = folder.join("volant.toml");
        // As a umask of 077 leaves it.
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        for text in ["[vm]\n", "[network]\n"] {
            write_config(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!((mode(&folder), mode(&path)), (0o755, 0o644));
        }
    }
}
