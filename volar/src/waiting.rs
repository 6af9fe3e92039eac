//! What moves on stderr while a command waits. Only on a terminal, and not with `--quiet`.

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{client::Progress, output::Output};

/// A spinner with a word, until it is dropped or finished.
pub fn spinner(output: &Output, message: impl Into<String>) -> ProgressBar {
    if hidden(output) {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message.into());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// Bars with bytes, one below the other: several artifacts are under way at once.
#[derive(Debug)]
pub struct Bars {
    all: MultiProgress,
    fetched: BTreeMap<String, ProgressBar>,
}

impl Bars {
    pub fn new(output: &Output) -> Self {
        let all = MultiProgress::new();
        if hidden(output) {
            all.set_draw_target(ProgressDrawTarget::hidden());
        }
        let fetched = BTreeMap::new();
        Self { all, fetched }
    }

    /// A new bar; whoever has it moves it and ends it.
    pub fn bar(&self, message: String, total: u64) -> ProgressBar {
        let bar = ProgressBar::new(total)
            .with_style(style(total))
            .with_message(message);
        self.all.add(bar)
    }

    /// Shows how far an artifact is that Volant fetches.
    pub fn fetching(&mut self, step: &Progress) {
        let total = step.total_bytes;
        let bar = match self.fetched.get(&step.artifact) {
            Some(bar) => bar.clone(),
            None => {
                let bar = self.bar(format!("Fetching {}", step.artifact), total);
                self.fetched.insert(step.artifact.clone(), bar.clone());
                bar
            }
        };
        if bar.length() != Some(total) && total > 0 {
            bar.set_style(style(total));
            bar.set_length(total);
        }
        bar.set_position(step.done_bytes);
        if total > 0 && step.done_bytes >= total {
            bar.finish_and_clear();
        }
    }

    /// Takes away what is left of them.
    pub fn end(&self) {
        for bar in self.fetched.values() {
            bar.finish_and_clear();
        }
    }
}

fn style(total: u64) -> ProgressStyle {
    let template = if total > 0 {
        "{msg:24} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}"
    } else {
        "{msg:24} {bytes} {bytes_per_sec}"
    };
    ProgressStyle::with_template(template).expect("the templates are constants")
}

fn hidden(output: &Output) -> bool {
    output.quiet || !std::io::stderr().is_terminal()
}
