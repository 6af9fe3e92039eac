//! `fledge build`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fledge::{Built, Options, build::Registries};
use indicatif::ProgressBar;
use serde_json::json;
use volant_oci::{Cache, Client, ProgressFn};

use super::{Output, interrupt, keys, progress::Bars};

#[derive(clap::Args)]
pub struct Build {
    /// What to build; the sources in it are relative to its folder
    #[arg(short, long, value_name = "FILE", default_value = "fledge.toml")]
    config: PathBuf,
    /// The folder of the results
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// The guest's agent, for the strategy initramfs
    #[arg(long, value_name = "PATH", default_value = fledge::KESTREL)]
    kestrel: PathBuf,
    /// Where layers of registries' images are kept [default: ~/.cache/volant/fledge]
    #[arg(long, value_name = "DIR", env = "FLEDGE_CACHE")]
    cache: Option<PathBuf>,
    /// How the result is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    format: Output,
}

pub fn run(args: Build) -> Result<()> {
    let (runtime, cancel) = interrupt::watched()?;
    let cache = match args.cache {
        Some(folder) => Cache::at(folder),
        None => Cache::from_env()?,
    };
    let options = Options {
        recipe: args.config,
        output: args.output,
        kestrel: args.kestrel,
        registries: Registries {
            runtime: runtime.handle().clone(),
            client: Client::from_env().context("cannot read the settings for registries")?,
            cache,
        },
        cancel,
    };
    let mut watch = Watch::new();
    let built = fledge::build(&options, &mut watch);
    watch.end();
    let built = built?;
    for warning in &built.warnings {
        eprintln!("warning: {warning}");
    }
    let text = match args.format {
        Output::Text => text(&built),
        Output::Json => format!(
            "{:#}",
            json!({
                "name": built.manifest.name, "version": built.manifest.version, "manifest": built.manifest_path,
                "artifact": built.artifact_path, "digest": built.digest, "size": built.size,
                "unpacked_size": built.unpacked_size, "warnings": built.warnings,
            })
        ),
    };
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn text(built: &Built) -> String {
    let shown = |path: &'_ Path| path.strip_prefix(".").unwrap_or(path).display().to_string();
    let manifest = shown(&built.manifest_path);
    // Who has no key makes one first.
    let keygen = match keys::path(None, "signing.key") {
        Ok(path) if path.exists() => "",
        _ => "fledge keygen\n",
    };
    format!(
        "{} {}: {:.1} MB of files in {} ({:.1} MB)\n{}\n\n{keygen}fledge sign {manifest}\nvolar plugins install --manifest {manifest}",
        built.manifest.name,
        built.manifest.version,
        built.unpacked_size as f64 / 1e6,
        shown(&built.artifact_path),
        built.size as f64 / 1e6,
        built.digest,
    )
}

struct Watch {
    bars: Bars,
    reading: Option<ProgressBar>,
    packing: Option<ProgressBar>,
}

impl Watch {
    fn new() -> Self {
        Self {
            bars: Bars::new(),
            reading: None,
            packing: None,
        }
    }

    fn end(&self) {
        for bar in [&self.reading, &self.packing].into_iter().flatten() {
            bar.finish_and_clear();
        }
    }
}

impl fledge::build::Watch for Watch {
    fn fetching(&self) -> ProgressFn {
        self.bars.blobs("fetching")
    }

    fn reading(&mut self, done: u64, total: u64) {
        let bar = self
            .reading
            .get_or_insert_with(|| self.bars.spinner("reading layers"));
        if done == total {
            bar.finish_and_clear();
        }
    }

    fn packing(&mut self, done: u64, total: u64) {
        let bar = self
            .packing
            .get_or_insert_with(|| self.bars.bytes("packing"));
        bar.set_length(total);
        bar.set_position(done);
    }
}
