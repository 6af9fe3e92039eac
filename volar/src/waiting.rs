//! What moves on stderr while a command waits. Only on a terminal, and not with `--quiet`.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

/// A spinner with a word, until it is dropped or finished.
pub fn spinner(output: &Output, message: impl Into<String>) -> ProgressBar {
    if hidden(output) {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message.into());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// A bar with bytes.
pub fn bar(output: &Output, message: impl Into<String>, total: u64) -> ProgressBar {
    if hidden(output) {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
            .expect("the template is a constant");
    ProgressBar::new(total)
        .with_style(style)
        .with_message(message.into())
}

fn hidden(output: &Output) -> bool {
    output.quiet || !std::io::stderr().is_terminal()
}
