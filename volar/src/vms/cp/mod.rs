//! `volar vms cp`: files into a guest and out of it, as one stream of tar each; no file in between.

mod pack;
mod plan;
mod stream;
mod unpack;

use std::{
    fs,
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::stream as streams;
use indicatif::ProgressBar;
use reqwest::{Body, Response};
use rustix::fs::{Mode, OFlags};
use tokio::{sync::mpsc, task};
use volant_spec::Name;

pub use pack::PackError;
pub use unpack::UnpackError;

use crate::{
    args::Copy,
    client::Client,
    failure::Failure,
    output::{Output, visible},
    stdio::{self, Out},
    waiting::Bars,
};
use pack::Pack;
use plan::{PlanError, Side, Source, There};
use stream::{Chunks, Receiving, Sending, WAITING};
use unpack::Unpack;

/// A guest's answer says whether what it sends is a folder, and how large a file is.
const IS_FOLDER: &str = "x-volant-is-directory";
const SIZE: &str = "x-volant-size";

pub async fn copy(copy: &Copy, client: &Client, output: &Output) -> Result<(), Failure> {
    let side = |text| plan::side(text).map_err(|error| refused(&error));
    match (side(&copy.from)?, side(&copy.to)?) {
        (Side::Guest { name, path }, Side::Stream) => {
            to_stdout(&name, &path, copy, client, output).await
        }
        (Side::Guest { name, path }, Side::Here(to)) => {
            download(&name, &path, &to, copy, client, output).await
        }
        (Side::Stream, Side::Guest { name, path }) => {
            let input = streams::unfold(stdio::input()?, async |mut input| {
                let chunk = input.recv().await?;
                Some((io::Result::Ok(chunk), input))
            });
            let body = Body::wrap_stream(input);
            client.unpack(&name, &path, copy.archive, body).await?;
            Ok(())
        }
        (Side::Here(from), Side::Guest { name, path }) => {
            upload(&from, &name, &path, copy, client, output).await
        }
        (Side::Guest { .. }, Side::Guest { .. }) => Err(refused(&PlanError::TwoGuests)),
        (Side::Here(_) | Side::Stream, Side::Here(_) | Side::Stream) => {
            Err(refused(&PlanError::NoGuest))
        }
    }
}

fn usage(why: impl Into<String>) -> Failure {
    Failure::Usage(why.into())
}

fn refused(error: &PlanError) -> Failure {
    usage(error.to_string())
}

async fn to_stdout(
    name: &Name,
    path: &str,
    copy: &Copy,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(usage(
            "an archive is nothing for a terminal; write it to a file or a pipe",
        ));
    }
    let mut response = client.fetch(name, path, copy.follow_link).await?;
    let bar = progress(name, size(&response), output);
    let mut out = Out::stdout()?;
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| client.failed(error))?
    {
        bar.inc(chunk.len() as u64);
        if out.write(chunk).await.is_err() {
            break;
        }
    }
    bar.finish_and_clear();
    out.finish().await
}

async fn download(
    name: &Name,
    path: &str,
    to: &Path,
    copy: &Copy,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let contents = plan::means_contents(path);
    // "/" has no folder around it: what is in it is meant.
    let asked = if contents && !path.ends_with("/.") {
        "/."
    } else {
        path
    };
    let response = client.fetch(name, asked, copy.follow_link).await?;
    let is_folder = header(&response, IS_FOLDER) == Some("true");
    let dst = typed(&resolved(to))?;
    let source = Source { path, is_folder };
    let target =
        plan::target(source, &dst, there(Path::new(&dst))).map_err(|error| refused(&error))?;
    let folder = open_folder(Path::new(&target.folder))?;
    let unpack = Unpack {
        top: target.top.map(Into::into),
        contents,
        keep_owner: copy.archive,
    };
    let bar = progress(name, size(&response), output);
    let (sender, receiver) = mpsc::channel(WAITING);
    let unpacking =
        task::spawn_blocking(move || unpack.run(folder.as_fd(), Receiving::new(receiver)));
    let received = receive(response, &sender, &bar, client).await;
    drop(sender);
    let unpacked = unpacking.await.map_err(|_| Failure::Unfinished)?;
    bar.finish_and_clear();
    received?;
    tell_left_out(&unpacked?, output);
    Ok(())
}

/// Gives what comes to whoever unpacks it, as long as there is one.
async fn receive(
    mut response: Response,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    bar: &ProgressBar,
    client: &Client,
) -> Result<(), Failure> {
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                bar.inc(chunk.len() as u64);
                if sender.send(Ok(chunk)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                // Half an archive is no whole one.
                let _ = sender.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                return Err(client.failed(error));
            }
        }
    }
}

async fn upload(
    from: &Path,
    name: &Name,
    to: &str,
    copy: &Copy,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let path = typed(from)?;
    let meta = if copy.follow_link || path.ends_with('/') {
        fs::metadata(from)
    } else {
        fs::symlink_metadata(from)
    };
    let meta = meta.map_err(|source| Failure::Io {
        act: format!("cannot read {}", from.display()),
        source,
    })?;
    if path.ends_with('/') && !meta.is_dir() {
        return Err(usage(format!("{} is no folder", from.display())));
    }
    let there = there_in_guest(name, to, client).await?;
    let source = Source {
        path: &path,
        is_folder: meta.is_dir(),
    };
    let target = plan::target(source, to, there).map_err(|error| refused(&error))?;
    let pack = Pack {
        path: from.to_owned(),
        top: target.top,
        follow: copy.follow_link || plan::means_contents(&path),
    };
    let bar = progress(name, if meta.is_file() { meta.len() } else { 0 }, output);
    let (sender, receiver) = mpsc::channel(WAITING);
    let packing = task::spawn_blocking(move || {
        let packed = pack.run(Sending::new(sender.clone()));
        if packed.is_err() {
            // The guest is not to take half an archive for a whole one.
            let _ = sender.blocking_send(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        packed
    });
    let body = Body::wrap_stream(counted(receiver, bar.clone()));
    let sent = client
        .unpack(name, &target.folder, copy.archive, body)
        .await;
    let packed = packing.await.map_err(|_| Failure::Unfinished)?;
    bar.finish_and_clear();
    match (sent, packed) {
        (Ok(_), Ok(left_out)) => {
            let left_out: Vec<_> = left_out
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            tell_left_out(&left_out, output);
            Ok(())
        }
        // What could not be read is why nothing could be sent, and the other way round.
        (Ok(_), Err(failure)) => Err(failure.into()),
        (Err(_), Err(failure @ (PackError::Read { .. } | PackError::Shorter { .. }))) => {
            Err(failure.into())
        }
        (Err(failure), _) => Err(failure),
    }
}

fn counted(
    chunks: Chunks,
    bar: ProgressBar,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    streams::unfold((chunks, bar), async |(mut chunks, bar)| {
        let chunk = chunks.recv().await?;
        if let Ok(chunk) = &chunk {
            bar.inc(chunk.len() as u64);
        }
        Some((chunk, (chunks, bar)))
    })
}

/// What is at a path in the guest: the start of its archive tells, and no more of it is taken.
async fn there_in_guest(name: &Name, path: &str, client: &Client) -> Result<There, Failure> {
    match client.fetch(name, path, true).await {
        Ok(response) if header(&response, IS_FOLDER) == Some("true") => Ok(There::Folder),
        Ok(_) => Ok(There::File),
        Err(Failure::Problem(problem)) if problem.slug() == "not-in-guest" => Ok(There::Nothing),
        // Something that cannot be packed is no folder either.
        Err(Failure::Problem(problem)) if problem.slug() == "unusable-in-guest" => Ok(There::File),
        Err(failure) => Err(failure),
    }
}

fn there(path: &Path) -> There {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => There::Folder,
        Ok(_) => There::File,
        Err(_) => There::Nothing,
    }
}

/// Where a link leads: a file that a link names is written, and not the link.
fn resolved(path: &Path) -> PathBuf {
    let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    let leads_to = is_link.then(|| fs::canonicalize(path).ok()).flatten();
    leads_to.unwrap_or_else(|| path.to_owned())
}

fn open_folder(path: &Path) -> Result<std::os::fd::OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Failure::Io {
        act: format!("cannot copy into {}", path.display()),
        source: error.into(),
    })
}

fn typed(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| usage(format!("{} is not UTF-8", path.display())))
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn size(response: &Response) -> u64 {
    header(response, SIZE)
        .and_then(|size| size.parse().ok())
        .unwrap_or(0)
}

fn progress(name: &Name, size: u64, output: &Output) -> ProgressBar {
    let bar = Bars::new(output).bar(format!("Copying, VM {name}"), size);
    bar.tick();
    bar
}

fn tell_left_out(names: &[String], output: &Output) {
    for name in names {
        output.warn(&format!(
            "left out {}: it is no file, folder or link",
            visible(name)
        ));
    }
}
