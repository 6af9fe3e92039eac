//! Where a daemon's own words go.

use std::io;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// HTTP/2's library warns of whatever a peer does wrong, as often as the peer likes; a guest is such a peer.
const FILTER: &str = "info,h2=error";

/// Logs to the journal when systemd connected this process to it (`JOURNAL_STREAM`), else to standard error.
///
/// `VOLANT_LOG` filters, in the syntax of `tracing_subscriber::EnvFilter`; [`FILTER`] when unset.
///
/// # Errors
/// The journal's socket cannot be reached.
pub fn init_logging() -> io::Result<()> {
    let filter = EnvFilter::try_from_env("VOLANT_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry
            .with(tracing_journald::layer()?.with_field_prefix(None))
            .init();
    } else {
        registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(io::stderr)
                    .without_time(),
            )
            .init();
    }
    Ok(())
}
