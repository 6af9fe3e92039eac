//! The binary: it is PID 1 of a guest, or the service beside another PID 1.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(kestrel::SERVICE) {
        return match kestrel::be_service() {
            Ok(()) => ExitCode::SUCCESS,
            Err(cause) => {
                eprintln!("kestrel: {cause}");
                ExitCode::FAILURE
            }
        };
    }
    if std::process::id() != 1 {
        let version = env!("CARGO_PKG_VERSION");
        eprintln!("kestrel {version} is PID 1 of a Volant guest, and does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    // The end of PID 1 is a kernel panic: the last way to end a machine that no call could end.
    let _ = kestrel::be_init();
    ExitCode::FAILURE
}
