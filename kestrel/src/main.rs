//! The binary: it is PID 1 or nothing.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        let version = env!("CARGO_PKG_VERSION");
        eprintln!("kestrel {version} is PID 1 of a Volant guest, and does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    // The end of PID 1 is a kernel panic: the last way to end a machine that no call could end.
    let _ = kestrel::be_init();
    ExitCode::FAILURE
}
