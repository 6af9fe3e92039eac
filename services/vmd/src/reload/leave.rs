//! The vmd that runs, on its way to the next one.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt,
            net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
        },
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use nix::unistd::execv;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    process::Command,
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use volant_service::Heirlooms;

use super::{
    Document, VERSION,
    bus::Bus,
    programs,
    request::{RELOAD, answer_refused},
};
use crate::{
    console::Hub,
    definition::Share,
    grpc::{Parked, Serving},
    hypervisor::detect::Choice,
    logs::Labels,
    supervise::{Busy, Handover, Snapshot},
    text::printable,
    unit::Settings,
};

/// For who connected to say what it wants.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// For the new binary to read the draft.
const CHECK: Duration = Duration::from_secs(20);
/// For copies and forwarded connections that are under way.
const LAST_CALLS: Duration = Duration::from_secs(20);
/// For the bus to answer.
const SETTLE: Duration = Duration::from_secs(5);
/// After an accept that failed: descriptors may be short.
const PAUSE: Duration = Duration::from_millis(100);
/// How much of the new binary's words is told.
const MOST_WORDS: usize = 1024;

/// What the next vmd gets that no other part of this one keeps.
#[derive(Debug)]
pub struct Estate {
    pub settings: Settings,
    /// What is executed.
    pub program: PathBuf,
    pub labels: Labels,
    pub choice: Choice,
    pub share: Share,
    pub bus: Bus,
    pub clients: StdUnixListener,
    pub control: StdUnixListener,
    pub console: Hub,
    pub parked: Parked,
}

/// Why the next vmd does not run.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("the VM is at its end")]
    Gone,
    #[error("cannot write the VM's state down")]
    Write(#[source] io::Error),
    #[error("cannot run the new {}", path.display())]
    Check { path: PathBuf, source: io::Error },
    #[error("the new {} did not read the VM's state within {} s", path.display(), CHECK.as_secs())]
    CheckTimeout { path: PathBuf },
    #[error("the new {} does not take the VM over: {said}", path.display())]
    NotUnderstood { path: PathBuf, said: String },
    #[error("cannot execute {}", path.display())]
    Execute { path: PathBuf, source: io::Error },
}

impl Estate {
    fn document(
        &self,
        vm: Snapshot,
        heirlooms: &mut Heirlooms,
        answer: &StdUnixStream,
    ) -> io::Result<Document> {
        Ok(Document {
            version: VERSION,
            program: self.program.clone(),
            labels: self.labels.clone(),
            choice: self.choice.clone(),
            share: self.share,
            bus: self.bus.save(heirlooms)?,
            clients: heirlooms.keep(&self.clients)?,
            control: heirlooms.keep(&self.control)?,
            answer: heirlooms.keep(answer)?,
            vm,
            console: self.console.save(),
            programs: programs::save(&self.parked, heirlooms)?,
            program_count: self.parked.count(),
        })
    }

    /// Executes the new binary with this document. It returns when it failed.
    fn execute(
        &self,
        vm: Snapshot,
        mut heirlooms: Heirlooms,
        answer: &StdUnixStream,
    ) -> Result<Infallible, ReloadError> {
        let document = self.document(vm, &mut heirlooms, answer);
        let document = document.and_then(|document| document.write());
        let kept = document.and_then(|document| heirlooms.keep(document));
        let document = kept.map_err(ReloadError::Write)?;
        let failed = |source| ReloadError::Execute {
            path: self.program.clone(),
            source,
        };
        let arguments = arguments(&self.program, &self.settings, document).map_err(failed)?;
        let Some(program) = arguments.first() else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        execv(program, &arguments).map_err(|errno| failed(errno.into()))
    }
}

/// What the new binary is started with: as this one was, and the number of the document.
fn arguments(program: &Path, settings: &Settings, document: RawFd) -> io::Result<Vec<CString>> {
    let Settings {
        name,
        config,
        run_dir,
        socket_dir,
    } = settings;
    let document = document.to_string();
    let words = [
        program.as_os_str().as_bytes(),
        name.as_str().as_bytes(),
        b"--config",
        config.as_os_str().as_bytes(),
        b"--run-dir",
        run_dir.as_os_str().as_bytes(),
        b"--socket-dir",
        socket_dir.as_os_str().as_bytes(),
        b"--take-over",
        document.as_bytes(),
    ];
    let words = words.into_iter().map(CString::new);
    words.collect::<Result<_, _>>().map_err(io::Error::from)
}

/// Hears who wants this vmd reloaded.
#[derive(Debug)]
pub struct Leaver {
    estate: Arc<Estate>,
    handovers: mpsc::Sender<Handover>,
}

impl Leaver {
    /// The VM's supervisor hears of successors by `handovers`.
    #[must_use]
    pub fn new(estate: Estate, handovers: mpsc::Sender<Handover>) -> Self {
        Self {
            estate: Arc::new(estate),
            handovers,
        }
    }

    /// Reloads as often as it is asked for; and never returns.
    ///
    /// # Errors
    /// Nobody can be heard.
    pub async fn serve(self, serving: &mut Serving) -> io::Result<Infallible> {
        let listener = UnixListener::from_std(self.estate.control.try_clone()?)?;
        loop {
            match listener.accept().await {
                Ok((asker, _)) => {
                    if let Err(error) = self.hear(asker, serving).await {
                        tracing::warn!("cannot hear who connected to the control socket: {error}");
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot accept on the control socket: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn hear(&self, mut asker: UnixStream, serving: &mut Serving) -> io::Result<()> {
        let mut word = [0; RELOAD.len()];
        let heard = timeout(FIRST_WORD, asker.read_exact(&mut word)).await;
        heard.map_err(|_| io::ErrorKind::TimedOut)??;
        let asker = asker.into_std()?;
        asker.set_nonblocking(false)?;
        if word != RELOAD {
            answer_refused(&asker, "it is asked for nothing that it knows");
            return Ok(());
        }
        tracing::info!("this vmd is to be reloaded");
        let Err(error) = self.reload(&asker, serving).await;
        self.estate.console.unpark();
        if let Err(error) = serving.again() {
            tracing::error!("cannot serve clients any more: {error}");
        }
        let why = volant_service::chain(&error);
        tracing::warn!("this vmd was not reloaded: {why}");
        answer_refused(&asker, &why);
        Ok(())
    }

    async fn reload(
        &self,
        asker: &StdUnixStream,
        serving: &mut Serving,
    ) -> Result<Infallible, ReloadError> {
        self.check(asker).await?;
        serving.pause(LAST_CALLS).await;
        self.estate.console.park().await;
        // A bus that does not answer is no reason to keep an old vmd: what it sends is read by the next one.
        if !matches!(timeout(SETTLE, self.estate.bus.settle()).await, Ok(Ok(()))) {
            tracing::warn!("the bus does not answer");
        }
        let answer = asker.try_clone().map_err(ReloadError::Write)?;
        let estate = Arc::clone(&self.estate);
        let execute = move |given: Result<(Snapshot, Heirlooms), Busy>| {
            let (vm, heirlooms) = given?;
            estate.execute(vm, heirlooms, &answer)
        };
        self.ask(true, execute).await?
    }

    /// Has the new binary read what it would get.
    async fn check(&self, asker: &StdUnixStream) -> Result<(), ReloadError> {
        let (vm, mut heirlooms) = self.ask(false, |given| given).await??;
        let draft = self.estate.document(vm, &mut heirlooms, asker);
        let draft = draft.and_then(|draft| draft.write());
        drop(heirlooms);
        let draft = draft.map_err(ReloadError::Write)?;
        understands(&self.estate.program, &self.estate.settings, draft).await
    }

    /// Has the supervisor give the VM to `take`, and answers what that said.
    async fn ask<T: Send + 'static>(
        &self,
        is_final: bool,
        take: impl FnOnce(Result<(Snapshot, Heirlooms), Busy>) -> T + Send + 'static,
    ) -> Result<T, ReloadError> {
        let (tell, told) = oneshot::channel();
        let handover = Handover {
            is_final,
            take: Box::new(move |given| drop(tell.send(take(given)))),
        };
        let asked = self.handovers.send(handover).await;
        asked.map_err(|_| ReloadError::Gone)?;
        told.await.map_err(|_| ReloadError::Gone)
    }
}

/// Runs the new binary with a document for its input, which it only reads.
async fn understands(
    program: &Path,
    settings: &Settings,
    document: OwnedFd,
) -> Result<(), ReloadError> {
    let path = || program.to_owned();
    let output = Command::new(program)
        .arg(settings.name.as_str())
        .arg("--check-state")
        .stdin(Stdio::from(File::from(document)))
        .kill_on_drop(true)
        .output();
    let output = timeout(CHECK, output).await;
    let output = output.map_err(|_| ReloadError::CheckTimeout { path: path() })?;
    let output = output.map_err(|source| ReloadError::Check {
        path: path(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ReloadError::NotUnderstood {
        path: path(),
        said: format!(
            "{} ({})",
            printable(&output.stderr, MOST_WORDS),
            output.status
        ),
    })
}
