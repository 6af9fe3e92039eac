//! A tar of the host, unpacked to a folder of the guest.
//!
//! A thread takes what comes and writes the files: nothing is between the two.

use volant_proto::agent::v1::{
    SessionEnd, SessionOpened, UnpackSession, session_refused::Kind as Why,
};

use self::{folder::Folder, write::Unpacker};
use super::{
    Ended, Input, Output, Refusal, answer,
    direct::{Incoming, in_thread},
    failed,
};

mod folder;
mod write;

/// Unpacks what comes.
///
/// # Errors
/// There is no such folder.
pub async fn run(
    wanted: &UnpackSession,
    input: &mut Input,
    output: &mut Output,
) -> Result<Ended, Refusal> {
    let path = wanted.path.as_str();
    let act = format!("cannot unpack to {}", path.escape_debug());
    if !path.starts_with('/') || path.contains('\0') {
        let message = format!("{act}: it is no absolute path");
        return Err(Refusal::new(Why::Invalid, message));
    }
    let folder = Folder::open(path.as_ref()).map_err(|error| Refusal::system(&act, &error))?;
    if !answer(output, &SessionOpened::default()).await {
        return Ok(None);
    }
    let connection = output.0.clone();
    let mut incoming = Incoming::new(connection.clone(), input.rest().to_vec());
    let mut unpacker = Unpacker::new(folder, wanted);
    let unpacked = in_thread(&connection, move || {
        let result = unpacker.all(&mut incoming);
        (unpacker.entries(), result)
    });
    Ok(match unpacked.await {
        Ok(Some((entries, result))) => Some(SessionEnd {
            entries,
            error: result.map_or_else(|error| error.to_string(), |()| String::new()),
            ..SessionEnd::default()
        }),
        Ok(None) => failed("the unpacking ended early"),
        Err(error) => failed(format!("cannot begin to unpack: {error}")),
    })
}
