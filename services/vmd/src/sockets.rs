//! The sockets at which vmd listens for the host: for clients of the VM, and for another vmd that takes over.
//!
//! They are made before vmd takes the VM's uid, in a folder that is not the VM's: a VMM that was taken over can neither
//! remove nor replace them. systemd removes them with the folder (`RuntimeDirectory=`).

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use volant_spec::Name;

/// For clients: the group may connect.
pub const CLIENTS: &str = "vmd.sock";
/// For `vmd --reload`: nobody may connect but vmd's own user, and root.
pub const CONTROL: &str = "control.sock";

/// The listeners, which do not block.
#[derive(Debug)]
pub struct Sockets {
    pub clients: UnixListener,
    pub control: UnixListener,
}

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}", path.display())]
pub struct SocketsError {
    path: PathBuf,
    source: io::Error,
}

/// Where the sockets of this VM are.
#[must_use]
pub fn folder(parent: &Path, name: &Name) -> PathBuf {
    parent.join(name.as_str())
}

impl Sockets {
    /// Listens in `folder`; old sockets are replaced.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn make(folder: &Path) -> Result<Self, SocketsError> {
        let mut builder = DirBuilder::new();
        // systemd made it, unless vmd is run by hand.
        let made = builder.mode(0o750).recursive(true).create(folder);
        made.map_err(|source| SocketsError {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            clients: listen(folder.join(CLIENTS), 0o660)?,
            control: listen(folder.join(CONTROL), 0o600)?,
        })
    }
}

fn listen(path: PathBuf, mode: u32) -> Result<UnixListener, SocketsError> {
    let make = || {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    make().map_err(|source| SocketsError { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_by_their_group_and_others_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web");
        for _ in 0..2 {
            let _sockets = Sockets::make(&path).unwrap();
            for (name, mode) in [(CLIENTS, 0o660), (CONTROL, 0o600)] {
                let permissions = fs::metadata(path.join(name)).unwrap().permissions();
                assert_eq!(permissions.mode() & 0o777, mode, "{name}");
            }
        }
    }
}
