//! The agent's own words where no host hears them: the kernel's log, which is on the console.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The kernel takes records of up to 1024 bytes, its own head included.
const LONGEST: usize = 900;

/// Puts `/dev/console` on standard input, output and error: a kernel that found no console started this process without.
///
/// # Errors
/// There is no console; what is open stays so.
pub fn adopt() -> io::Result<()> {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    dup2_stdin(console.as_fd())?;
    dup2_stdout(console.as_fd())?;
    dup2_stderr(console.as_fd())?;
    Ok(())
}

/// Says something that must be seen. Never fails and never panics: there is nobody left to tell.
pub fn say(words: &str) {
    let record = record(words);
    let told = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(record.as_bytes()));
    if told.is_err() {
        // Not eprintln!, which panics when nobody can be written to.
        let _ = writeln!(io::stderr(), "kestrel: {words}");
    }
}

/// One record of the kernel's log, of level "error": what is less is not on a quiet console.
fn record(words: &str) -> String {
    let mut end = words.len().min(LONGEST);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    format!("<3>kestrel: {}\n", words[..end].replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_short_line() {
        assert_eq!(record("a\nb"), "<3>kestrel: a b\n");
        let long = record(&"ü".repeat(1000));
        assert!(long.len() <= LONGEST + 13, "{}", long.len());
        assert!(record(&format!("x{}", "ü".repeat(1000))).ends_with("ü\n"));
    }
}
