//! Sockets that systemd opened for this service, found by their `FileDescriptorName=`.

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixListener as StdUnixListener,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// The inherited sockets that nobody took yet.
#[derive(Debug)]
pub struct Sockets(HashMap<String, OwnedFd>);

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("cannot read the sockets that systemd passed")]
    Inherit(#[source] io::Error),
    #[error("the inherited socket '{name}' cannot be used")]
    Use { name: String, source: io::Error },
    #[error("cannot listen on {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

impl Sockets {
    /// Takes what systemd passed (`LISTEN_FDS`, `LISTEN_FDNAMES`); empty when run by hand.
    ///
    /// Call it once, before anything else opens descriptors.
    ///
    /// # Errors
    /// The environment names sockets that are not there.
    pub fn inherit() -> Result<Self, SocketError> {
        let fds = sd_notify::listen_fds_with_names().map_err(SocketError::Inherit)?;
        let owned = |(fd, name)| {
            #[allow(
                unsafe_code,
                reason = "the one place where inherited descriptors become owned"
            )]
            // SAFETY: systemd passed this descriptor to us alone, and `listen_fds_with_names` gives it once, as this
            // function is called once.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            (name, fd)
        };
        Ok(Self(fds.map(owned).collect()))
    }

    /// Takes the descriptor of that name, whatever its kind.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// The listener of that name; without one, listens on `path` (an old socket there is replaced).
    ///
    /// # Errors
    /// The descriptor is no listening Unix socket, or the path cannot be bound.
    pub fn unix_listener(&mut self, name: &str, path: &Path) -> Result<UnixListener, SocketError> {
        let listener = match self.take(name) {
            Some(fd) => StdUnixListener::from(fd),
            None => bind(path).map_err(|source| SocketError::Bind {
                path: path.to_owned(),
                source,
            })?,
        };
        listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener))
            .map_err(|source| SocketError::Use {
                name: name.to_owned(),
                source,
            })
    }
}

fn bind(path: &Path) -> io::Result<StdUnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    StdUnixListener::bind(path)
}
