//! `fledge inspect`: what a reference or a file is, and what it holds.

use std::{fmt::Write as _, io::Write, path::Path};

use anyhow::{Context, Result};
use fledge::push;
use serde_json::{Value, json};
use volant_oci::{
    Cache, Client, Image, ImageConfig, Loader, Platform, Source,
    plugin::{self, Inspection},
};
use volant_spec::Manifest;
use volant_trust::Signature;

use super::{Output, interrupt, push::reference};

#[derive(clap::Args)]
pub struct Inspect {
    /// oci://HOST/REPO[:TAG|@DIGEST] in a registry; a manifest's file; or an image: oci:DIR, oci-archive:FILE, docker-archive:FILE
    #[arg(value_name = "WHAT")]
    what: String,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub fn run(args: &Inspect) -> Result<()> {
    let value = if args.what.starts_with("oci://") {
        remote(&args.what)?
    } else if Path::new(&args.what).exists() {
        let packed = push::pack(Path::new(&args.what))?;
        let files = packed
            .package
            .artifacts
            .iter()
            .map(|file| (Some(file.title.clone()), file.digest, file.size));
        plugin_value(&packed.manifest, packed.package.signature.as_deref(), files)
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

fn remote(text: &str) -> Result<Value> {
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
            let mut value = plugin_value(&manifest, pulled.signature.as_deref(), files);
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

fn plugin_value(
    manifest: &Manifest,
    signature: Option<&[u8]>,
    files: impl Iterator<Item = (Option<String>, volant_spec::Digest, u64)>,
) -> Value {
    let files: Vec<Value> = files
        .map(|(name, digest, size)| json!({ "name": name, "digest": digest, "size": size }))
        .collect();
    let signature = signature.map(|bytes| match Signature::parse(bytes) {
        Ok(signature) => json!({ "key_id": signature.key_id().to_string(), "trusted_comment": signature.trusted_comment() }),
        Err(error) => json!({ "error": error.to_string() }),
    });
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
