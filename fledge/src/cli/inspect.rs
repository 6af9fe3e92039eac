//! `fledge inspect`: what a reference or a file is, and what it holds.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fledge::push::{self, Standing};
use serde_json::{Value, json};
use volant_oci::{
    Cache, Client, Image, ImageConfig, Loader, Platform, Source,
    plugin::{self, Inspection},
};
use volant_spec::Manifest;
use volant_trust::{PublicKey, Signature};

use super::{
    Output, interrupt,
    push::{key, reference},
};

#[derive(clap::Args)]
pub struct Inspect {
    /// oci://HOST/REPO[:TAG|@DIGEST] in a registry; a manifest's file; or an image: oci:DIR, oci-archive:FILE, docker-archive:FILE
    #[arg(value_name = "WHAT")]
    what: String,
    /// The key that a plugin's signature is looked at with [default: ~/.config/volant/signing.pub, if it is there]
    #[arg(short, long, value_name = "FILE")]
    public: Option<PathBuf>,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub fn run(args: &Inspect) -> Result<()> {
    let key = Key {
        key: key(args.public.as_deref())?,
        must_be: args.public.is_some(),
    };
    let value = if args.what.starts_with("oci://") {
        remote(&args.what, &key)?
    } else if Path::new(&args.what).exists() {
        let packed = push::pack(Path::new(&args.what))?;
        let files = packed
            .package
            .artifacts
            .iter()
            .map(|file| (Some(file.title.clone()), file.digest, file.size));
        let package = &packed.package;
        let signature = signature(&package.manifest, package.signature.as_deref(), &key);
        plugin_value(&packed.manifest, &signature, files)
    } else {
        let image = image(&args.what)?;
        image_value(&image.config, image.digest, image.layers.len())
    };
    let text = match args.output {
        Output::Json => format!("{value:#}"),
        Output::Text => text(&value),
    };
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("cannot write to standard output")
}

/// What signatures are looked at with.
struct Key {
    key: Option<PublicKey>,
    must_be: bool,
}

fn remote(text: &str, key: &Key) -> Result<Value> {
    let reference = reference(text)?;
    let client = Client::from_env().context("cannot read the settings for registries")?;
    let found = interrupt::run(async { Ok(plugin::inspect(&client, &reference).await?) })?;
    Ok(match found {
        Inspection::Plugin(pulled) => {
            let manifest = Manifest::parse(&pulled.manifest)
                .with_context(|| format!("{text} is a plugin that this version cannot read"))?;
            let files = pulled
                .artifacts
                .iter()
                .map(|file| (file.title.clone(), file.digest, file.size));
            let signature = signature(&pulled.manifest, pulled.signature.as_deref(), key);
            let mut value = plugin_value(&manifest, &signature, files);
            value["digest"] = pulled.digest.to_string().into();
            value
        }
        Inspection::Image {
            digest,
            config,
            layers,
            ..
        } => image_value(&config, Some(digest), layers.len()),
        Inspection::Index { digest, platforms } => {
            json!({ "kind": "image for several platforms", "digest": digest, "platforms": platforms })
        }
        Inspection::Other { digest, kind } => json!({ "kind": kind, "digest": digest }),
    })
}

fn image(text: &str) -> Result<Image> {
    let source = Source::parse(text, Path::new(""))?;
    let loader = Loader {
        client: Client::from_env().context("cannot read the settings for registries")?,
        cache: Cache::from_env()?,
        platform: Platform::default(),
        progress: None,
    };
    interrupt::run(async {
        source
            .load(&loader)
            .await
            .with_context(|| format!("cannot read {source}"))
    })
}

/// Null where there is none.
fn signature(manifest: &[u8], signature: Option<&[u8]>, key: &Key) -> Value {
    let Some(bytes) = signature else {
        return Value::Null;
    };
    let mut value = match Signature::parse(bytes) {
        Ok(signature) => {
            json!({ "key_id": signature.key_id().to_string(), "trusted_comment": signature.trusted_comment() })
        }
        Err(_) => json!({}),
    };
    value["state"] = match push::standing(manifest, bytes, key.key.as_ref(), key.must_be) {
        Ok(Standing::Verified) => "verified",
        Ok(Standing::Unchecked(_)) => "not verified",
        Err(error) => {
            value["error"] = error.to_string().into();
            "does not fit"
        }
    }
    .into();
    value
}

/// For people.
fn told(signature: &Value) -> String {
    let shown = |key: &str| {
        signature[key]
            .as_str()
            .map(|text| text.escape_debug().to_string())
    };
    let mut told = shown("state").unwrap_or_default();
    if let Some(key) = shown("key_id") {
        told.push_str(&format!(", by {key}"));
    }
    if let Some(text) = shown("error").or_else(|| shown("trusted_comment")) {
        told.push_str(&format!(": {text}"));
    }
    told
}

fn plugin_value(
    manifest: &Manifest,
    signature: &Value,
    files: impl Iterator<Item = (Option<String>, volant_spec::Digest, u64)>,
) -> Value {
    let files: Vec<Value> = files
        .map(|(name, digest, size)| json!({ "name": name, "digest": digest, "size": size }))
        .collect();
    json!({
        "kind": "plugin", "name": manifest.name, "version": manifest.version, "description": manifest.description,
        "signature": signature, "files": files, "manifest": manifest,
    })
}

fn image_value(config: &ImageConfig, digest: Option<volant_spec::Digest>, layers: usize) -> Value {
    let ports: Vec<String> = config
        .exposed_ports
        .iter()
        .map(|port| format!("{}/{}", port.number, port.protocol))
        .collect();
    json!({
        "kind": "image", "digest": digest, "platform": format!("{}/{}", config.os, config.architecture),
        "layers": layers, "entrypoint": config.entrypoint, "cmd": config.cmd, "env": config.env, "user": config.user,
        "workdir": config.working_dir, "stop_signal": config.stop_signal, "ports": ports, "volumes": config.volumes,
        "labels": config.labels,
    })
}

/// A line for each thing that is there.
fn text(value: &Value) -> String {
    let mut text = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let shown = match value {
            Value::Null => continue,
            Value::Array(list) if list.is_empty() => continue,
            Value::String(word) if word.is_empty() => continue,
            Value::Object(map) if map.is_empty() => continue,
            Value::String(word) => word.escape_debug().to_string(),
            Value::Object(_) if key == "signature" => told(value),
            Value::Array(list) if key == "files" => {
                for file in list {
                    let name = file["name"]
                        .as_str()
                        .unwrap_or("(no name)")
                        .escape_debug()
                        .to_string();
                    let size = file["size"].as_u64().unwrap_or_default();
                    let _ = writeln!(
                        text,
                        "{:12} {name} {:.1} MB {}",
                        "file",
                        size as f64 / 1e6,
                        file["digest"].as_str().unwrap_or_default()
                    );
                }
                continue;
            }
            other => other.to_string(),
        };
        let _ = writeln!(text, "{key:12} {shown}");
    }
    text
}
