//! An artifact's way into the store: not at all if it is there, else on from where the last download ended.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use url::Url;
use volant_spec::manifest::Named;

use super::{
    InstallError, Progress,
    obtain::From,
    urls::{artifact_url, shown},
};
use crate::{Registry, fetch::FetchError, sink::Sink, store::BlobError};

/// Between two progress messages of an artifact.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How often a download that broke off is taken up again at once.
const RETRIES: u32 = 3;
/// Before the first of them; doubled each time.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// An artifact on its way.
struct Wanted<'a> {
    artifact: &'a Named<'a>,
    place: Place,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
    throttle: Mutex<Throttle>,
}

/// Where an artifact is.
enum Place {
    Web(Url),
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
            progress,
            throttle: Mutex::default(),
        };
        // Whoever needs the same waits for this one, and then finds it.
        let _alone = self.downloading(&artifact.checksum).await;
        if self.is_there(artifact).await? {
            return Ok(());
        }
        self.download(&wanted).await
    }

    async fn is_there(&self, artifact: &Named<'_>) -> Result<bool, InstallError> {
        let digest = artifact.checksum;
        match self.ask(move |store| store.there(&digest)).await? {
            Some(size) => checked(artifact, size).map(|()| true),
            None => Ok(false),
        }
    }

    async fn download(&self, wanted: &Wanted<'_>) -> Result<(), InstallError> {
        let digest = wanted.artifact.checksum;
        let keep = |source| wanted.keep(source);
        let mut sink = Sink::resume(self.store(), digest).await.map_err(keep)?;
        let mut retries = 0;
        loop {
            let mut resumed = sink.size() > 0;
            match self.attempt(wanted, &mut sink, &mut resumed).await {
                Ok(()) if resumed && !sink.matches(&digest).await.map_err(keep)? => {
                    // What was there before was not the beginning of it.
                    sink.restart().map_err(keep)?;
                }
                Ok(()) => break,
                Err(error) if is_passing(&error) => {
                    sink.flush().await.map_err(keep)?;
                    if retries == RETRIES {
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY_AFTER * 2_u32.pow(retries)).await;
                    retries += 1;
                }
                Err(error @ InstallError::Size { .. }) => {
                    sink.discard();
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        let size = sink.finish(digest).await.map_err(keep)?;
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
        let Place::Web(url) = &wanted.place;
        let fetch = |source| wanted.fetch(source);
        let keep = |source| wanted.keep(source);
        let got = self.fetcher().get_from(url, sink.size()).await;
        let mut download = got.map_err(fetch)?;
        if download.start() == 0 && *resumed {
            sink.restart().map_err(keep)?;
            *resumed = false;
        }
        let announced = download.total();
        if let Some(size) = announced {
            checked(wanted.artifact, size)?;
        }
        let limit = self.store().max_blob_bytes();
        let total = announced.or(declared);
        if total.is_some_and(|size| size > limit) {
            return Err(keep(BlobError::TooLarge { limit }));
        }
        while let Some(chunk) = download.chunk().await.map_err(fetch)? {
            sink.push(&chunk).await.map_err(keep)?;
            let done = sink.size();
            if declared.is_some_and(|declared| done > declared) {
                return checked(wanted.artifact, done);
            }
            if wanted.is_due() {
                wanted.tell(done, total);
            }
        }
        checked(wanted.artifact, sink.size())
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

    fn keep(&self, source: BlobError) -> InstallError {
        InstallError::Keep {
            artifact: self.artifact.field.clone(),
            url: self.place.shown(),
            source: Box::new(source),
        }
    }

    fn tell(&self, done_bytes: u64, total_bytes: Option<u64>) {
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

impl Place {
    fn shown(&self) -> String {
        match self {
            Self::Web(url) => shown(url),
        }
    }
}

fn place(artifact: &Named<'_>, from: &From) -> Result<Place, InstallError> {
    let base = match from {
        From::Store => None,
        From::Web(url) => Some(url),
    };
    let url = artifact_url(artifact.url, base).map(Place::Web);
    url.ok_or_else(|| InstallError::NotUploaded {
        artifact: artifact.field.clone(),
        url: artifact.url.to_owned(),
    })
}

fn is_passing(error: &InstallError) -> bool {
    matches!(
        error,
        InstallError::Fetch {
            source: FetchError::Broken { .. },
            ..
        }
    )
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
