//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use simfluence_core::Progress;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often plain lines come at most.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Draws the progress of one phase at a time; phases that begin inside another are part of it.
#[derive(Default)]
pub struct TerminalProgress {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    depth: u32,
    bar: Option<ProgressBar>,
    lines: Option<Lines>,
}

/// Progress as lines, for logs.
struct Lines {
    what: String,
    done: u64,
    total: u64,
    started: Instant,
    last: Instant,
}

impl Lines {
    fn print(&mut self) {
        self.last = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = self.done as f64 / seconds.max(1e-9);
        let left = (self.total.saturating_sub(self.done)) as f64 / rate.max(1e-9);
        eprintln!(
            "{}: {}/{} ({rate:.1}/s, {left:.0} s left)",
            self.what, self.done, self.total
        );
    }
}

impl Progress for TerminalProgress {
    fn begin(&self, what: &str, total: u64) {
        let mut state = self.state.lock().expect("no panic while drawing");
        state.depth += 1;
        if state.depth > 1 || total == 0 {
            return;
        }
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(
                "{msg} {wide_bar:.cyan/dim} {pos}/{len} ({per_sec}, {eta} left)",
            )
            .expect("the template is valid");
            let bar = ProgressBar::new(total).with_style(style);
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            state.bar = Some(bar);
        } else {
            let now = Instant::now();
            state.lines = Some(Lines {
                what: what.to_owned(),
                done: 0,
                total,
                started: now,
                last: now,
            });
        }
    }

    fn advance(&self, units: u64) {
        let mut state = self.state.lock().expect("no panic while drawing");
        if state.depth > 1 {
            return;
        }
        if let Some(bar) = &state.bar {
            bar.inc(units);
        }
        if let Some(lines) = &mut state.lines {
            lines.done += units;
            if lines.last.elapsed() >= LINE_EVERY {
                lines.print();
            }
        }
    }

    fn end(&self) {
        let mut state = self.state.lock().expect("no panic while drawing");
        state.depth = state.depth.saturating_sub(1);
        if state.depth > 0 {
            return;
        }
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        if let Some(mut lines) = state.lines.take()
            && lines.started.elapsed() >= LINE_EVERY
        {
            lines.print();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inner_phase_does_not_move_the_outer_one() {
        let progress = TerminalProgress::default();
        progress.begin("outer", 2);
        progress.begin("inner", 100);
        progress.advance(50);
        progress.end();
        progress.advance(1);
        let state = progress.state.lock().unwrap();
        let drawn = state.lines.as_ref().map(|l| l.done);
        let bar = state.bar.as_ref().map(ProgressBar::position);
        assert_eq!(drawn.or(bar), Some(1));
    }
}
