//! What xtask tells the person who waits for it.

use std::{
    fmt::Display,
    process::{Command, ExitStatus},
};

use anyhow::{Context, Result, ensure};

/// Names the step that begins now.
pub fn step(what: impl Display) {
    eprintln!("==> {what}");
}

/// Runs a command whose output goes to the person.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    ensure!(status.success(), "{} failed ({status})", shown(command));
    Ok(())
}

/// Runs a command that stays silent unless it fails, and gives its standard output.
///
/// # Errors
/// It cannot be started, or fails; the error has what it printed.
pub fn quietly(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{} failed ({})\n{stdout}{stderr}",
        shown(command),
        output.status
    );
    Ok(stdout.into_owned())
}

fn status(command: &mut Command) -> Result<ExitStatus> {
    command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ").chars().take(200).collect()
}
