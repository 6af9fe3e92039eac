//! What there is around a VM's supervisor, and what becomes of it at the VM's end.

use std::{
    convert::Infallible,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::JoinHandle, time::timeout};
use volant_spec::Name;

use super::UnitError;
use crate::{
    agent::ListenError, console::Hub, ended::Ended, grpc::Serving, logs::Writer, reload::Leaver,
};

/// For the journal, once the VM has ended.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// For clients to hear of the end.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// What there is around a VM's supervisor as long as the VM lives.
pub(crate) struct Around {
    pub(crate) _folder: RunDir,
    pub(crate) serving: Serving,
    pub(crate) console: Hub,
    pub(crate) writer: Writer,
    pub(crate) announcer: JoinHandle<()>,
    pub(crate) limits: Option<JoinHandle<()>>,
    pub(crate) leaver: Leaver,
}

impl Around {
    /// Waits for the VM's end, and lets everybody hear of it.
    pub(crate) async fn until_end(
        self,
        supervised: impl Future<Output = Result<Ended, ListenError>>,
    ) -> Result<Ended, UnitError> {
        let Self {
            _folder,
            mut serving,
            console,
            writer,
            announcer,
            limits,
            leaver,
        } = self;
        let leaving = async {
            let Err(error) = leaver.serve(&mut serving).await;
            tracing::error!("this vmd cannot be reloaded: {error}");
            std::future::pending::<Infallible>().await
        };
        let ended = tokio::select! {
            ended = supervised => ended?,
            never = leaving => match never {},
        };
        console.close();
        serving.pause(LAST_CALLS).await;
        if let Some(limits) = limits {
            limits.abort();
        }
        writer.finish(LAST_WORDS).await;
        // The bus hears of the end, too.
        if timeout(LAST_WORDS, announcer).await.is_err() {
            tracing::warn!("the bus did not take the VM's last words");
        }
        Ok(ended)
    }
}

/// The VM's own folder; it goes with this value.
pub(crate) struct RunDir(pub(super) PathBuf);

impl RunDir {
    /// One that another vmd made.
    pub(crate) fn existing(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn make(parent: &Path, name: &Name) -> Result<Self, UnitError> {
        let path = parent.join(name.as_str());
        let make = || {
            // What an earlier run left: run by hand, that is; systemd gives each start a parent of its own.
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            DirBuilder::new().mode(0o700).recursive(true).create(&path)
        };
        match make() {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(UnitError::RunDir { path, source }),
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
