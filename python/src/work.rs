//! Long work that Ctrl-C, or the stop button of a notebook, ends.

use crate::progress::PythonProgress;
use pyo3::prelude::*;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How often Python is asked for signals.
const EVERY: Duration = Duration::from_millis(50);

/// Does `work` on a thread of its own, without the interpreter's lock, while this one listens for
/// signals: Python's handlers run on the main thread only. If one of them raises, `work` ends where
/// it next tells of progress.
///
/// # Errors
/// What a signal handler raised (`KeyboardInterrupt`).
pub fn interruptible<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&PythonProgress) -> T + Send,
) -> PyResult<T> {
    let progress = PythonProgress::new(progress);
    let outcome = py.detach(|| {
        let (done, finished) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let outcome = panic::catch_unwind(AssertUnwindSafe(|| work(&progress)));
                // Whoever waits for it is still there: the scope ends after this thread.
                let _ = done.send(outcome);
            });
            let mut interrupted = None;
            loop {
                match finished.recv_timeout(EVERY) {
                    Ok(outcome) => return (outcome, interrupted),
                    Err(RecvTimeoutError::Timeout) if interrupted.is_none() => {
                        interrupted = Python::attach(|py| py.check_signals()).err();
                        if interrupted.is_some() {
                            progress.cancel();
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        unreachable!("the thread sends before it ends")
                    }
                }
            }
        })
    });
    match outcome {
        (_, Some(interrupt)) => {
            progress.abandon();
            Err(interrupt)
        }
        (Ok(made), None) => Ok(made),
        (Err(panicked), None) => panic::resume_unwind(panicked),
    }
}
