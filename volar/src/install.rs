//! `volar plugins install`: checks what is on this machine, uploads what Volant lacks, and has it installed.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::StreamExt;
use indicatif::ProgressBar;
use reqwest::Body;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};
use tokio_util::io::ReaderStream;
use volant_spec::Digest;

use crate::{
    client::{Client, Source},
    failure::Failure,
    manifest::{self, LocalArtifact},
    output::Output,
    waiting,
};

const PIECE: usize = 256 * 1024;

/// Installs a plugin from a file of this machine or a URL.
pub async fn install(source: &str, client: &Client, output: &Output) -> Result<Value, Failure> {
    let source = if source.starts_with("http://") || source.starts_with("https://") {
        Source::ManifestUrl(source.to_owned())
    } else {
        let local = manifest::read(Path::new(source))?;
        for artifact in &local.artifacts {
            upload(artifact, client, output).await?;
        }
        Source::Manifest(local.written)
    };
    let spinner = waiting::spinner(output, "Installing");
    let mut bar: Option<(String, ProgressBar)> = None;
    let installed = client
        .install(&source, &mut |step| {
            if bar
                .as_ref()
                .is_none_or(|(artifact, _)| *artifact != step.artifact)
            {
                spinner.finish_and_clear();
                let message = format!("Fetching {}", step.artifact);
                bar = Some((
                    step.artifact.clone(),
                    waiting::bar(output, message, step.total_bytes),
                ));
            }
            if let Some((_, bar)) = &bar {
                bar.set_length(step.total_bytes.max(step.done_bytes));
                bar.set_position(step.done_bytes);
            }
        })
        .await;
    spinner.finish_and_clear();
    if let Some((_, bar)) = bar {
        bar.finish_and_clear();
    }
    installed
}

/// Checks an artifact, and uploads it unless the store has it.
async fn upload(artifact: &LocalArtifact, client: &Client, output: &Output) -> Result<(), Failure> {
    let failed = |source| Failure::Artifact {
        artifact: artifact.field,
        path: artifact.path.clone(),
        source,
    };
    let (mut file, size) = open(&artifact.path).await.map_err(failed)?;
    if let Some(expected) = artifact.size.filter(|expected| *expected != size) {
        let (artifact, path) = (artifact.field, artifact.path.clone());
        return Err(Failure::ArtifactSize {
            artifact,
            path,
            expected,
            actual: size,
        });
    }
    let checking = waiting::bar(output, format!("Checking {}", artifact.field), size);
    let actual = digest(&mut file, &checking).await.map_err(failed);
    checking.finish_and_clear();
    let actual = actual?;
    if actual != artifact.digest {
        let (expected, artifact, path) = (artifact.digest, artifact.field, artifact.path.clone());
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
    let sending = waiting::bar(output, format!("Uploading {}", artifact.field), size);
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
