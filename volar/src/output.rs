//! The only place that writes to stdout. Whoever reads it may stop: that is no error.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{args::Format, failure::Failure};

/// How results are shown.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
    pub quiet: bool,
    colour: bool,
    /// Colours on stderr.
    loud: bool,
}

/// A cell of a table; the colour is for terminals.
#[derive(Clone, Debug)]
pub struct Shown {
    pub text: String,
    pub colour: Option<Color>,
}

impl<T: Into<String>> From<T> for Shown {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            colour: None,
        }
    }
}

impl Output {
    #[must_use]
    pub fn new(format: Format, quiet: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            format,
            quiet,
            colour: !no_colour && io::stdout().is_terminal(),
            loud: !no_colour && io::stderr().is_terminal(),
        }
    }

    #[must_use]
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    pub fn version(&self) -> Result<(), Failure> {
        let version = env!("CARGO_PKG_VERSION");
        if self.is_json() {
            return self.json(&serde_json::json!({ "version": version }));
        }
        self.text(&format!("volar {version}"))
    }

    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::Answer(error.to_string()))?;
        self.put(&text)
    }

    /// A result that was asked for.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        self.put(&visible(text))
    }

    /// Names alone, one a line.
    pub fn names(&self, names: &[String]) -> Result<(), Failure> {
        if names.is_empty() {
            Ok(())
        } else {
            self.text(&names.join("\n"))
        }
    }

    /// A word that all went well; nothing with `--quiet` or where a program reads.
    pub fn done(&self, text: &str) -> Result<(), Failure> {
        if self.quiet || self.is_json() {
            Ok(())
        } else {
            self.text(text)
        }
    }

    /// Columns without borders, as wide as they need to be.
    pub fn table<const N: usize>(
        &self,
        header: [&str; N],
        rows: Vec<[Shown; N]>,
    ) -> Result<(), Failure> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header);
        table.add_rows(
            rows.into_iter()
                .map(|row| row.map(|shown| self.cell(&shown))),
        );
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        self.put(&table.trim_fmt())
    }

    /// A title and its value on each line.
    pub fn facts(&self, facts: &[(&str, Shown)]) -> Result<(), Failure> {
        let width = facts
            .iter()
            .map(|(title, _)| title.len())
            .max()
            .unwrap_or(0)
            + 1;
        let lines: Vec<String> = facts
            .iter()
            .map(|(title, shown)| {
                format!("{:width$}  {}", format!("{title}:"), self.painted(shown))
            })
            .collect();
        self.put(&lines.join("\n"))
    }

    /// The text in its colour, where there are colours.
    #[must_use]
    pub fn painted(&self, shown: &Shown) -> String {
        let text = visible(&shown.text);
        match shown.colour.filter(|_| self.colour) {
            Some(Color::Green) => format!("\x1b[32m{text}\x1b[0m"),
            Some(Color::Yellow) => format!("\x1b[33m{text}\x1b[0m"),
            Some(Color::Red) => format!("\x1b[31m{text}\x1b[0m"),
            _ => text,
        }
    }

    /// Something that must not go unseen: on stderr, whatever else is shown and how.
    pub fn warn(&self, text: &str) {
        eprintln!("{}", self.loud(&format!("warning: {}", visible(text))));
    }

    fn loud(&self, text: &str) -> String {
        if self.loud {
            format!("\x1b[1;33m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Bytes as they are, with nothing added.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        written(|stdout| stdout.write_all(bytes)).map(drop)
    }

    /// Lines whose colours are in them already.
    pub fn lines(&self, lines: &[String]) -> Result<(), Failure> {
        self.put(&lines.join("\n"))
    }

    /// Whether there is a terminal whose table can be replaced by the next one.
    #[must_use]
    pub fn is_screen(&self) -> bool {
        !self.is_json() && io::stdout().is_terminal()
    }

    /// Makes room for the next table, where there is a screen. Gives whether somebody still reads.
    pub fn clear(&self) -> Result<bool, Failure> {
        let home: &[u8] = if self.is_screen() {
            b"\x1b[H\x1b[2J"
        } else {
            b""
        };
        written(|stdout| stdout.write_all(home))
    }

    /// One of many lines. Gives whether somebody still reads.
    pub fn line(&self, text: &str) -> Result<bool, Failure> {
        written(|stdout| writeln!(stdout, "{}", visible(text)))
    }

    /// One of many values, on a line. Gives whether somebody still reads.
    pub fn json_line(&self, value: &serde_json::Value) -> Result<bool, Failure> {
        written(|stdout| writeln!(stdout, "{value}"))
    }

    fn cell(&self, shown: &Shown) -> Cell {
        let cell = Cell::new(visible(&shown.text));
        match shown.colour {
            Some(colour) => cell.fg(colour),
            None => cell,
        }
    }

    fn put(&self, text: &str) -> Result<(), Failure> {
        written(|stdout| {
            stdout.write_all(text.as_bytes())?;
            stdout.write_all(b"\n")
        })
        .map(drop)
    }
}

/// Gives whether somebody still reads.
fn written(
    write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>,
) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(Failure::Io {
            act: "cannot write to standard output".to_owned(),
            source,
        }),
    }
}

/// The text without control characters, nor those that turn its direction: a guest has its say in some of them, and none
/// over a terminal.
#[must_use]
pub fn visible(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let deceives = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let harmless = (!c.is_control() && !deceives) || c == '\n' || c == '\t';
            let escaped = (!harmless).then(|| c.escape_default());
            harmless
                .then_some(c)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// Bytes in the unit that suits them.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut value = count as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1000.0
        && let Some(next) = units.next()
    {
        value /= 1000.0;
        unit = Some(next);
    }
    match unit {
        Some(unit) if count >= 1000 => format!("{value:.1} {unit}"),
        _ => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_no_say_over_the_terminal() {
        assert_eq!(visible("a\x1b[2Jb\u{9b}c\n\t"), "a\\u{1b}[2Jb\\u{9b}c\n\t");
        assert_eq!(visible("a\u{202e}txt.exe"), "a\\u{202e}txt.exe");
    }

    #[test]
    fn bytes_are_shown_in_their_unit() {
        for (count, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (15_166_812, "15.2 MB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
        assert_eq!(bytes(u64::MAX), "18446744.1 TB");
    }
}
