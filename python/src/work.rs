//! Long work that Ctrl-C, or the stop button of a notebook, ends.

use crate::errors;
use crate::progress::PythonProgress;
use pyo3::prelude::*;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How often Python is asked for signals.
const EVERY: Duration = Duration::from_millis(50);

/// The process that first read, recorded or computed something; 0 before that.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Work is done by threads, which a forked process does not have: it would wait for them forever.
///
/// # Errors
/// This process was forked from one that had worked before.
pub fn require_threads() -> PyResult<()> {
    let me = std::process::id();
    match OWNER.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed) {
        Err(owner) if owner != me => Err(errors::Error::new_err(
            "this process was forked from one that had used simfluence, and lacks its threads; start it anew: multiprocessing.get_context(\"spawn\")",
        )),
        _ => Ok(()),
    }
}

/// Does `work` without the interpreter's lock.
///
/// # Errors
/// As [`require_threads`].
pub fn released<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    require_threads()?;
    Ok(py.detach(work))
}

/// Does `work` on a thread of its own, without the interpreter's lock, while this one listens for
/// signals: Python's handlers run on the main thread only. If one of them raises, `work` ends where
/// it next tells of progress.
///
/// # Errors
/// What a signal handler raised (`KeyboardInterrupt`); as [`require_threads`].
pub fn interruptible<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&PythonProgress) -> T + Send,
) -> PyResult<T> {
    require_threads()?;
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
