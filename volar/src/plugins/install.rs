//! `volar plugins install`: checks what is on this machine, has it installed, and uploads what Volant lacks for that.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use reqwest::Body;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{fs::File, io::AsyncReadExt};
use tokio_util::io::ReaderStream;
use volant_spec::Digest;

use super::{
    manifest::{self, LocalArtifact},
    source::{self, Origin},
    view::Plugin,
};
use crate::{
    args::Install,
    client::{Client, NewPlugin, Source},
    failure::Failure,
    output::Output,
    view::read,
    waiting::{self, Bars},
};

const PIECE: usize = 256 * 1024;
/// Artifacts that are read or sent at the same time.
const AT_ONCE: usize = 2;

/// Installs a plugin, and says what was installed and who signed it.
pub async fn run(given: &Install, client: &Client, output: &Output) -> Result<(), Failure> {
    let origin = source::origin(given, Path::is_file)?;
    if given.signature.is_some() && !matches!(origin, Origin::File(_)) {
        return Err(Failure::Usage(
            "--signature goes with a manifest that is a file; other plugins have theirs where the manifest is"
                .to_owned(),
        ));
    }
    let mut bars = Bars::new(output);
    let mut local = Vec::new();
    let (source, signature) = match origin {
        Origin::File(path) => {
            let manifest = manifest::read(&path)?;
            let signature = manifest::signature(&path, given.signature.as_deref())?;
            local = check_all(&manifest.artifacts, &bars).await?;
            (Source::Manifest(manifest.written), signature)
        }
        Origin::Url(url) => (Source::ManifestUrl(url), None),
        Origin::Oci(reference) => (Source::OciReference(reference), None),
        Origin::Name(plugin) => (Source::Name(plugin), None),
    };
    let plugin = NewPlugin {
        source,
        signature,
        allow_downgrade: given.allow_downgrade,
    };
    let installed = match install(&plugin, client, &mut bars, output).await {
        // The plugin is let in: only now is it worth an upload.
        Err(Failure::Problem(problem)) if problem.is_missing_artifact() && !local.is_empty() => {
            upload_all(&local, client, &bars).await?;
            install(&plugin, client, &mut bars, output).await
        }
        installed => installed,
    }?;
    let plugin: Plugin = read(installed.clone())?;
    for warning in &plugin.warnings {
        output.warn(warning);
    }
    if output.is_json() {
        return output.json(&installed);
    }
    output.done(&plugin.sentence())
}

async fn install(
    plugin: &NewPlugin,
    client: &Client,
    bars: &mut Bars,
    output: &Output,
) -> Result<Value, Failure> {
    let spinner = waiting::spinner(output, "Installing");
    let installed = client
        .install(plugin, &mut |step| {
            spinner.finish_and_clear();
            bars.fetching(step);
        })
        .await;
    spinner.finish_and_clear();
    bars.end();
    installed
}

/// An artifact that is what the manifest says, and its size.
type Checked = (LocalArtifact, u64);

/// Checks the artifacts; a file that several fields name, once.
async fn check_all(artifacts: &[LocalArtifact], bars: &Bars) -> Result<Vec<Checked>, Failure> {
    let is_first = |at: usize, artifact: &LocalArtifact| {
        let same = |other: &LocalArtifact| {
            (&other.path, other.digest, other.size)
                == (&artifact.path, artifact.digest, artifact.size)
        };
        !artifacts[..at].iter().any(same)
    };
    let different = artifacts
        .iter()
        .enumerate()
        .filter(|(at, artifact)| is_first(*at, artifact))
        .map(|(_, artifact)| async move { Ok((artifact.clone(), check(artifact, bars).await?)) });
    stream::iter(different)
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// Reads an artifact; gives its size.
async fn check(artifact: &LocalArtifact, bars: &Bars) -> Result<u64, Failure> {
    let (mut file, size) = open(&artifact.path).await.map_err(failed(artifact))?;
    if let Some(expected) = artifact.size.filter(|expected| *expected != size) {
        let (artifact, path) = (artifact.field.clone(), artifact.path.clone());
        return Err(Failure::ArtifactSize {
            artifact,
            path,
            expected,
            actual: size,
        });
    }
    let checking = bars.bar(format!("Checking {}", artifact.field), size);
    let actual = digest(&mut file, &checking).await.map_err(failed(artifact));
    checking.finish_and_clear();
    let actual = actual?;
    if actual != artifact.digest {
        let (field, path) = (artifact.field.clone(), artifact.path.clone());
        let (expected, artifact) = (artifact.digest, field);
        return Err(Failure::ArtifactDigest {
            artifact,
            path,
            expected,
            actual,
        });
    }
    Ok(size)
}

async fn upload_all(artifacts: &[Checked], client: &Client, bars: &Bars) -> Result<(), Failure> {
    stream::iter(artifacts.iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |(artifact, size)| {
            upload(artifact, *size, client, bars)
        })
        .await
}

/// Uploads an artifact unless the store has it. Volant checks it again: the file may be another one by now.
async fn upload(
    artifact: &LocalArtifact,
    size: u64,
    client: &Client,
    bars: &Bars,
) -> Result<(), Failure> {
    if client.has_blob(&artifact.digest).await? {
        return Ok(());
    }
    let (file, _) = open(&artifact.path).await.map_err(failed(artifact))?;
    let sending = bars.bar(format!("Uploading {}", artifact.field), size);
    let (seen, unreadable) = (sending.clone(), Arc::new(AtomicBool::new(false)));
    let watched = Arc::clone(&unreadable);
    let stream =
        ReaderStream::with_capacity(file.take(size), PIECE).map(move |piece| match piece {
            Ok(piece) => {
                seen.inc(piece.len() as u64);
                Ok(piece)
            }
            Err(error) => {
                watched.store(true, Ordering::Relaxed);
                Err(error)
            }
        });
    let sent = client
        .put_blob(&artifact.digest, size, Body::wrap_stream(stream))
        .await;
    sending.finish_and_clear();
    match sent {
        // The HTTP client only knows that its body ended early.
        Err(_) if unreadable.load(Ordering::Relaxed) => Err(failed(artifact)(io::Error::other(
            "it could not be read to its end",
        ))),
        sent => sent,
    }
}

fn failed(artifact: &LocalArtifact) -> impl Fn(io::Error) -> Failure {
    |source| Failure::Artifact {
        artifact: artifact.field.clone(),
        path: artifact.path.clone(),
        source,
    }
}

/// Opens an ordinary file; anything else has no size, or waits for ever.
async fn open(path: &Path) -> io::Result<(File, u64)> {
    let found = tokio::fs::metadata(path).await?;
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    Ok((File::open(path).await?, found.len()))
}

async fn digest(file: &mut File, bar: &ProgressBar) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read(&mut piece).await?;
        if count == 0 {
            return Ok(Digest::from_bytes(hash.finalize().into()));
        }
        hash.update(&piece[..count]);
        bar.inc(count as u64);
    }
}
