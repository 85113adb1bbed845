//! Progress of long work, told to a Python function.

use pyo3::prelude::*;
use simfluence::core::Progress;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often Python hears of progress at most: each time costs taking the interpreter's lock.
const EVERY: Duration = Duration::from_millis(100);

/// Calls `function(event, what, number)`; phases that begin inside another are part of it.
pub struct PythonProgress {
    function: Option<Py<PyAny>>,
    state: Mutex<State>,
    cancelled: AtomicBool,
}

/// What unwinds the threads of work that was cancelled.
struct Cancelled;

struct State {
    depth: u32,
    waiting: u64,
    told: Instant,
}

impl PythonProgress {
    /// Tells `function`, or nobody.
    pub fn new(function: Option<Py<PyAny>>) -> Self {
        let state = State {
            depth: 0,
            waiting: 0,
            told: Instant::now(),
        };
        Self {
            function,
            state: Mutex::new(state),
            cancelled: AtomicBool::new(false),
        }
    }

    /// Ends the work where it next tells of progress.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Tells that nothing more will come, in whatever phase cancelled work was.
    pub fn abandon(&self) {
        self.tell("end", "", 0);
    }

    /// Unwinds, without the message of a panic, if the work was cancelled.
    fn go_on(&self) {
        if self.cancelled.load(Ordering::Relaxed) {
            std::panic::resume_unwind(Box::new(Cancelled));
        }
    }

    fn tell(&self, event: &str, what: &str, number: u64) {
        if let Some(function) = &self.function {
            // A progress bar that fails must not end the work.
            Python::attach(|py| {
                if let Err(error) = function.call1(py, (event, what, number)) {
                    error.write_unraisable(py, None);
                }
            });
        }
    }
}

impl Progress for PythonProgress {
    fn begin(&self, what: &str, total: u64) {
        self.go_on();
        let outermost = {
            let mut state = self.state.lock().expect("no panic while counting");
            state.depth += 1;
            state.depth == 1
        };
        if outermost {
            self.tell("begin", what, total);
        }
    }

    fn advance(&self, units: u64) {
        self.go_on();
        let due = {
            let mut state = self.state.lock().expect("no panic while counting");
            if state.depth != 1 {
                return;
            }
            state.waiting += units;
            if state.told.elapsed() < EVERY {
                return;
            }
            state.told = Instant::now();
            std::mem::take(&mut state.waiting)
        };
        self.tell("advance", "", due);
    }

    fn end(&self) {
        let left = {
            let mut state = self.state.lock().expect("no panic while counting");
            state.depth = state.depth.saturating_sub(1);
            if state.depth > 0 {
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        self.tell("end", "", left);
    }
}
