//! Progress for people: bars with bytes on a terminal, nothing in a pipe.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use volant_oci::ProgressFn;
use volant_spec::Digest;

/// Bars on standard error.
#[derive(Clone)]
pub struct Bars(MultiProgress);

impl Bars {
    pub fn new() -> Self {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self(MultiProgress::with_draw_target(target))
    }

    /// A bar in bytes.
    pub fn bytes(&self, what: &str) -> ProgressBar {
        let style =
            ProgressStyle::with_template("{msg:24} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
                .expect("the template is a constant");
        self.0.add(
            ProgressBar::new(0)
                .with_style(style)
                .with_message(what.to_owned()),
        )
    }

    /// Something that takes its time.
    pub fn spinner(&self, what: &'static str) -> ProgressBar {
        let bar = self.0.add(ProgressBar::new_spinner().with_message(what));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// A bar for each blob, as it comes or goes.
    pub fn blobs(&self, what: &'static str) -> ProgressFn {
        let (this, bars) = (
            self.clone(),
            Mutex::new(HashMap::<Digest, ProgressBar>::new()),
        );
        Arc::new(move |step: volant_oci::Progress| {
            let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            let hex = step.digest.hex();
            let bar = bars
                .entry(step.digest)
                .or_insert_with(|| this.bytes(&format!("{what} {}", &hex[..12])));
            bar.set_length(step.total);
            bar.set_position(step.done);
            if step.done >= step.total {
                bar.finish_and_clear();
            }
        })
    }
}
