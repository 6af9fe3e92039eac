//! `fledge verify`.

use std::{io::Write, path::PathBuf};

use anyhow::{Context, Result, bail};
use fledge::{
    local::{Artifact, State},
    verify::{self, Verified},
};
use serde_json::{Value, json};
use volant_trust::PublicKey;

use super::{Output, keys};

#[derive(clap::Args)]
pub struct Verify {
    /// The public key's file [default: ~/.config/volant/signing.pub]
    #[arg(short, long, value_name = "FILE")]
    public: Option<PathBuf>,
    /// The public key itself (RWQ…)
    #[arg(short = 'P', long, value_name = "KEY", conflicts_with = "public")]
    key: Option<String>,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The manifest; its signature is MANIFEST.minisig
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
}

pub fn run(args: Verify) -> Result<()> {
    let key = match &args.key {
        Some(text) => PublicKey::parse(text).context("-P is not a key")?,
        None => verify::read_key(&keys::path(args.public, "signing.pub")?)?,
    };
    let result = Verified::read(&args.manifest, &key).map_err(anyhow::Error::from);
    if args.output == Output::Json {
        write(&format!("{:#}", json(&key, &result)))?;
    }
    let verified = result?;
    if args.output == Output::Text {
        write(&text(&key, &verified))?;
    }
    let wrong: Vec<_> = verified.wrong().map(reason).collect();
    if !wrong.is_empty() {
        bail!(
            "the signature is right, and an artifact is not: {}",
            wrong.join("; ")
        );
    }
    Ok(())
}

fn text(key: &PublicKey, verified: &Verified) -> String {
    let (name, version) = (&verified.manifest.name, &verified.manifest.version);
    let mut text = format!(
        "{name} {version}: signed with the key {}\ntrusted comment: {}",
        key.id(),
        verified.trusted_comment
    );
    for artifact in &verified.artifacts {
        let is = match artifact.state {
            State::Right => "as signed",
            State::Elsewhere => "not on this machine, not compared",
            State::Wrong(_) => "WRONG",
        };
        text.push_str(&format!(
            "\n{} {}: {is}",
            artifact.field,
            artifact.url.escape_debug()
        ));
    }
    text
}

fn json(key: &PublicKey, result: &Result<Verified>) -> Value {
    let key_id = key.id().to_string();
    match result {
        Err(error) => json!({
            "valid": false, "key_id": key_id, "error": format!("{error:#}"),
        }),
        Ok(verified) => json!({
            "valid": verified.wrong().next().is_none(),
            "key_id": key_id,
            "name": verified.manifest.name,
            "version": verified.manifest.version,
            "trusted_comment": verified.trusted_comment,
            "timestamp": verified.timestamp,
            "artifacts": verified.artifacts.iter().map(artifact).collect::<Vec<_>>(),
        }),
    }
}

fn artifact(artifact: &Artifact) -> Value {
    let mut value = json!({ "field": artifact.field, "url": artifact.url });
    match &artifact.state {
        State::Right => value["state"] = "right".into(),
        State::Elsewhere => value["state"] = "elsewhere".into(),
        State::Wrong(_) => {
            value["state"] = "wrong".into();
            value["error"] = reason(artifact).into();
        }
    }
    value
}

/// Why an artifact is wrong, with its field.
fn reason(artifact: &Artifact) -> String {
    match &artifact.state {
        State::Wrong(wrong) => {
            let mut text = format!("{}: {wrong}", artifact.field);
            let mut source = std::error::Error::source(wrong);
            while let Some(error) = source {
                text.push_str(&format!(": {error}"));
                source = error.source();
            }
            text
        }
        State::Right | State::Elsewhere => String::new(),
    }
}

fn write(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}
