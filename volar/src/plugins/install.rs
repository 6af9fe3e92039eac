//! `volar plugins install`: checks what is on this machine, uploads what Volant lacks, and has it installed.

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
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};
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
    let (source, signature) = match origin {
        Origin::File(path) => {
            let local = manifest::read(&path)?;
            let signature = manifest::signature(&path, given.signature.as_deref())?;
            upload_all(&local.artifacts, client, &bars).await?;
            (Source::Manifest(local.written), signature)
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
    let spinner = waiting::spinner(output, "Installing");
    let installed = client
        .install(&plugin, &mut |step| {
            spinner.finish_and_clear();
            bars.fetching(step);
        })
        .await;
    spinner.finish_and_clear();
    bars.end();
    let installed = installed?;
    let plugin: Plugin = read(installed.clone())?;
    for warning in &plugin.warnings {
        output.warn(warning);
    }
    if output.is_json() {
        return output.json(&installed);
    }
    output.done(&plugin.sentence())
}

/// Uploads what the store lacks; a file that several fields name, once.
async fn upload_all(
    artifacts: &[LocalArtifact],
    client: &Client,
    bars: &Bars,
) -> Result<(), Failure> {
    let is_first = |at: usize, artifact: &LocalArtifact| {
        let same = |other: &LocalArtifact| {
            (&other.path, other.digest, other.size)
                == (&artifact.path, artifact.digest, artifact.size)
        };
        !artifacts[..at].iter().any(same)
    };
    let uploads = artifacts
        .iter()
        .enumerate()
        .filter(|(at, artifact)| is_first(*at, artifact))
        .map(|(_, artifact)| Ok(artifact));
    stream::iter(uploads)
        .try_for_each_concurrent(AT_ONCE, |artifact| upload(artifact, client, bars))
        .await
}

/// Checks an artifact, and uploads it unless the store has it.
async fn upload(artifact: &LocalArtifact, client: &Client, bars: &Bars) -> Result<(), Failure> {
    let failed = |source| Failure::Artifact {
        artifact: artifact.field.clone(),
        path: artifact.path.clone(),
        source,
    };
    let (mut file, size) = open(&artifact.path).await.map_err(failed)?;
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
    let actual = digest(&mut file, &checking).await.map_err(failed);
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
    if client.has_blob(&actual).await? {
        return Ok(());
    }
    file.rewind().await.map_err(failed)?;
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
        .put_blob(&actual, size, Body::wrap_stream(stream))
        .await;
    sending.finish_and_clear();
    match sent {
        // The HTTP client only knows that its body ended early.
        Err(_) if unreadable.load(Ordering::Relaxed) => {
            Err(failed(io::Error::other("it could not be read to its end")))
        }
        sent => sent,
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
