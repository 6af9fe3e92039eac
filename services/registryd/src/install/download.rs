//! An artifact's way into the store: not at all if it is there, else on from where the last download ended.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use url::Url;
use volant_oci::{BlobStream, RegistryError};
use volant_spec::manifest::Named;

use super::{
    InstallError, Progress,
    obtain::{From, Repository},
    urls::{artifact_url, shown},
};
use crate::{
    Registry,
    downloads::Shared,
    fetch::{Download, FetchError},
    sink::Sink,
    store::BlobError,
};

/// Between two progress messages of an artifact.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How often a download that failed, and may not the next time, is tried again without any progress in between.
const RETRIES: u32 = 3;
/// Before the first of them; doubled each time.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// An artifact on its way.
pub(super) struct Wanted<'a> {
    pub(super) artifact: &'a Named<'a>,
    place: Place<'a>,
    pub(super) shared: Arc<Shared>,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
    throttle: Mutex<Throttle>,
}

/// Where an artifact is.
enum Place<'a> {
    Web(Url),
    /// Of so many bytes.
    Repository(&'a Repository, u64),
}

/// Bytes on their way.
enum Stream {
    Web(Box<Download>),
    Registry(Box<BlobStream>),
}

impl Registry {
    /// Has the artifact in the store, from where it is if need be.
    pub(super) async fn provide(
        &self,
        artifact: &Named<'_>,
        from: &From,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), InstallError> {
        if self.is_there(artifact).await? {
            return Ok(());
        }
        let wanted = Wanted {
            artifact,
            place: place(artifact, from)?,
            shared: self.download_of(&artifact.checksum),
            progress,
            throttle: Mutex::default(),
        };
        tokio::select! {
            done = self.take_turn(&wanted) => return done,
            () = wanted.shared.kept() => {}
        }
        // Somebody else was faster.
        if !self.is_there(artifact).await? {
            return self.beside(&wanted).await;
        }
        let digest = artifact.checksum;
        self.ask(move |store| store.forget_partial(&digest)).await?;
        Ok(())
    }

    pub(super) async fn is_there(&self, artifact: &Named<'_>) -> Result<bool, InstallError> {
        let digest = artifact.checksum;
        match self.ask(move |store| store.there(&digest)).await? {
            Some(found) => match artifact.size {
                Some(declared) if declared != found => Err(InstallError::DeclaredSize {
                    artifact: artifact.field.clone(),
                    found,
                    declared,
                }),
                _ => Ok(true),
            },
            None => Ok(false),
        }
    }

    pub(super) async fn download(
        &self,
        wanted: &Wanted<'_>,
        mut sink: Sink,
    ) -> Result<(), InstallError> {
        let digest = wanted.artifact.checksum;
        let keep = |source| wanted.keep(source);
        let (mut retries, mut furthest, mut anew) = (0, sink.size(), false);
        let enough = self.fetcher().limits().bytes;
        let mut whole = sink.size() > 0 && sink.matches(&digest).await.map_err(keep)?;
        while !whole {
            let mut resumed = sink.size() > 0;
            match self.attempt(wanted, &mut sink, &mut resumed).await {
                Ok(()) if resumed && !anew && !sink.matches(&digest).await.map_err(keep)? => {
                    // What was there before was not the beginning of it.
                    sink.restart().map_err(keep)?;
                    anew = true;
                }
                Ok(()) => whole = true,
                Err(error) if is_passing(&error) => {
                    sink.flush().await.map_err(keep)?;
                    if sink.size() >= furthest.saturating_add(enough) {
                        (retries, furthest) = (0, sink.size());
                    }
                    if retries == RETRIES {
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY_AFTER * 2_u32.pow(retries)).await;
                    retries += 1;
                }
                Err(error) => {
                    // More than there is of it: that is something else.
                    let most = wanted.artifact.size;
                    if most.is_some_and(|most| sink.size() > most) {
                        sink.discard();
                    }
                    return Err(error);
                }
            }
        }
        let size = sink.finish(digest).await.map_err(keep)?;
        wanted.shared.keep();
        wanted.tell(size, Some(size));
        Ok(())
    }

    /// Downloads what is missing. `resumed` tells whether bytes of another download are in front.
    async fn attempt(
        &self,
        wanted: &Wanted<'_>,
        sink: &mut Sink,
        resumed: &mut bool,
    ) -> Result<(), InstallError> {
        let declared = wanted.artifact.size;
        if *resumed && declared == Some(sink.size()) {
            return Ok(());
        }
        let keep = |source| wanted.keep(source);
        let (mut stream, announced, start) = self.open(wanted, sink.size()).await?;
        // What is there is not given up for an answer that cannot be the artifact: a portal's page, say.
        if let Some(size) = announced {
            checked(wanted.artifact, size)?;
        }
        let limit = self.store().max_blob_bytes();
        let total = announced.or(declared);
        if total.is_some_and(|size| size > limit) {
            return Err(keep(BlobError::TooLarge { limit }));
        }
        if start == 0 && *resumed {
            sink.restart().map_err(keep)?;
            *resumed = false;
        }
        while let Some(chunk) = wanted.next(&mut stream).await? {
            sink.push(&chunk).await.map_err(keep)?;
            let done = sink.size();
            wanted.shared.got(chunk.len() as u64, done);
            if declared.is_some_and(|declared| done > declared) {
                return checked(wanted.artifact, done);
            }
            if wanted.is_due() {
                wanted.tell(done, total);
            }
        }
        match total {
            Some(size) if sink.size() < size => Err(wanted.short(sink.size(), size)),
            _ => checked(wanted.artifact, sink.size()),
        }
    }

    /// The bytes from `offset` on if the server can do that; the size of the whole if it is announced, and where the bytes
    /// begin.
    async fn open(
        &self,
        wanted: &Wanted<'_>,
        offset: u64,
    ) -> Result<(Stream, Option<u64>, u64), InstallError> {
        match &wanted.place {
            Place::Web(url) => {
                let got = self.fetcher().get_from(url, offset).await;
                let download = got.map_err(|source| wanted.fetch(source))?;
                let (total, start) = (download.total(), download.start());
                Ok((Stream::Web(Box::new(download)), total, start))
            }
            Place::Repository(repository, size) => {
                // More than there is of it: what is there is something else.
                let start = if offset < *size { offset } else { 0 };
                let digest = &wanted.artifact.checksum;
                let client = &repository.client;
                let got = client.blob(&repository.reference, digest, *size, start);
                let stream = got.await.map_err(|source| wanted.pull(source))?;
                Ok((Stream::Registry(Box::new(stream)), Some(*size), start))
            }
        }
    }
}

impl Wanted<'_> {
    fn fetch(&self, source: FetchError) -> InstallError {
        InstallError::Fetch {
            artifact: self.artifact.field.clone(),
            url: self.place.shown(),
            source,
        }
    }

    /// The body ended before its end.
    fn short(&self, got: u64, size: u64) -> InstallError {
        self.fetch(FetchError::Short { got, size })
    }

    fn pull(&self, source: RegistryError) -> InstallError {
        InstallError::PullArtifact {
            artifact: self.artifact.field.clone(),
            source: Box::new(source),
        }
    }

    async fn next(&self, stream: &mut Stream) -> Result<Option<Bytes>, InstallError> {
        match stream {
            Stream::Web(download) => download.chunk().await.map_err(|e| self.fetch(e)),
            Stream::Registry(blob) => blob.chunk().await.map_err(|e| self.pull(e)),
        }
    }

    pub(super) fn keep(&self, source: BlobError) -> InstallError {
        InstallError::Keep {
            artifact: self.artifact.field.clone(),
            url: self.place.shown(),
            source: Box::new(source),
        }
    }

    pub(super) fn tell(&self, done_bytes: u64, total_bytes: Option<u64>) {
        (self.progress)(Progress {
            artifact: self.artifact.field.clone(),
            done_bytes,
            total_bytes,
        });
    }

    fn is_due(&self) -> bool {
        let throttle = self.throttle.lock();
        throttle.is_ok_and(|mut throttle| throttle.due(Instant::now()))
    }
}

impl Place<'_> {
    fn shown(&self) -> String {
        match self {
            Self::Web(url) => shown(url),
            Self::Repository(repository, _) => repository.reference.to_string(),
        }
    }
}

fn place<'a>(artifact: &Named<'_>, from: &'a From) -> Result<Place<'a>, InstallError> {
    let base = match from {
        From::Store | From::Repository(_) => None,
        From::Web(url) => Some(url),
    };
    if let From::Repository(repository) = from {
        let pushed = repository.artifacts.iter();
        let pushed = pushed.filter(|pushed| pushed.digest == artifact.checksum);
        if let Some(size) = pushed.map(|pushed| pushed.size).next() {
            return Ok(Place::Repository(repository, size));
        }
    }
    match (artifact_url(artifact.url, base), from) {
        (Some(url), _) => Ok(Place::Web(url)),
        (None, From::Repository(repository)) => Err(InstallError::NotPushed {
            artifact: artifact.field.clone(),
            digest: artifact.checksum,
            reference: repository.reference.to_string(),
        }),
        (None, From::Store | From::Web(_)) => Err(InstallError::NotUploaded {
            artifact: artifact.field.clone(),
            url: artifact.url.to_owned(),
        }),
    }
}

fn is_passing(error: &InstallError) -> bool {
    match error {
        InstallError::Fetch { source, .. } => source.is_passing(),
        InstallError::PullArtifact { source, .. } => source.is_passing(),
        _ => false,
    }
}

fn checked(artifact: &Named<'_>, found: u64) -> Result<(), InstallError> {
    match artifact.size {
        Some(declared) if declared != found => Err(InstallError::Size {
            artifact: artifact.field.clone(),
            found,
            declared,
        }),
        _ => Ok(()),
    }
}

#[derive(Debug, Default)]
struct Throttle(Option<Instant>);

impl Throttle {
    fn due(&mut self, now: Instant) -> bool {
        let due = self
            .0
            .is_none_or(|last| now.duration_since(last) >= PROGRESS_EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_ten_times_a_second_at_most() {
        let begun = Instant::now();
        let mut throttle = Throttle::default();
        let told = (0..1000)
            .filter(|ms| throttle.due(begun + Duration::from_millis(*ms)))
            .count();
        assert_eq!(told, 10);
    }
}
