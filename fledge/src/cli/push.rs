//! `fledge push`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use fledge::{
    push::{self, PackError, Packed, Standing},
    verify,
};
use serde_json::json;
use volant_oci::{Client, Reference, plugin};
use volant_trust::PublicKey;

use super::{Output, interrupt, keys, progress::Bars};

#[derive(clap::Args)]
pub struct Push {
    /// Where to: oci://HOST/REPO:TAG
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// The plugin's manifest; its artifacts and its signature are beside it [default: the only one in this folder]
    #[arg(value_name = "MANIFEST")]
    manifest: Option<PathBuf>,
    /// The key that the signature must be of [default: ~/.config/volant/signing.pub, when it is of that]
    #[arg(short, long, value_name = "FILE")]
    public: Option<PathBuf>,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub fn run(args: Push) -> Result<()> {
    let reference = reference(&args.reference)?;
    let path = match args.manifest {
        Some(path) => path,
        None => push::only_manifest(Path::new("."))?,
    };
    let Packed {
        manifest,
        mut package,
        elsewhere,
    } = push::pack(&path)?;
    package.created = created()?;
    let key = key(args.public.as_deref())?;
    match &package.signature {
        None => eprintln!(
            "warning: {} is not signed; hosts that require signatures will refuse it. Sign it: fledge sign {}",
            manifest.name,
            path.display()
        ),
        Some(signature) => {
            let must_be = args.public.is_some();
            match push::standing(&package.manifest, signature, key.as_ref(), must_be) {
                Ok(Standing::Verified) => {}
                Ok(Standing::Unchecked(key)) => {
                    eprintln!("note: the signature by {key} was not checked: --public FILE");
                }
                Err(source) => return Err(PackError::Unfit { path, source }.into()),
            }
        }
    }
    for url in elsewhere {
        eprintln!("note: {} stays where it is", url.escape_debug());
    }
    let client = Client::from_env().context("cannot read the settings for registries")?;
    let bars = Bars::new();
    let digest = interrupt::run(async {
        Ok(plugin::push(&client, &reference, &package, Some(&bars.blobs("pushing"))).await?)
    })?;
    let text = match args.output {
        Output::Text => format!(
            "{} {}: pushed to oci://{reference}\n{digest}\n\nvolar plugins install oci://{reference}",
            manifest.name, manifest.version
        ),
        Output::Json => format!(
            "{:#}",
            json!({
                "name": manifest.name, "version": manifest.version, "signed": package.signature.is_some(),
                "reference": format!("oci://{reference}"), "digest": digest,
            })
        ),
    };
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

/// The public key in that file; else the user's own, if there is one.
pub fn key(given: Option<&Path>) -> Result<Option<PublicKey>> {
    if let Some(path) = given {
        return Ok(Some(verify::read_key(path)?));
    }
    // One that nobody asked for, and that cannot be read, is none.
    let own = keys::path(None, "signing.pub").ok();
    Ok(own.and_then(|path| verify::read_key(&path).ok()))
}

/// An explicit `oci://`, so that a mistyped path is not taken for a repository of Docker Hub.
pub fn reference(text: &str) -> Result<Reference> {
    if !text.starts_with("oci://") {
        bail!("'{}' is no oci://HOST/REPO:TAG", text.escape_debug());
    }
    text.parse()
        .with_context(|| format!("'{}' is no reference", text.escape_debug()))
}

/// RFC 3339, of `SOURCE_DATE_EPOCH`; without it nothing is said of the time, so that the same plugin has the same digest.
fn created() -> Result<Option<String>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let time = time.context("SOURCE_DATE_EPOCH is not a number of seconds since 1970")?;
    Ok(Some(time.to_string()))
}
