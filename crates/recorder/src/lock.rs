//! One writer per run: a lock that the system takes back when its holder dies.

use crate::error::{RecorderError, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the lock file in the folder of a run or of a run set.
const LOCK_FILE: &str = ".lock";

/// Held by the one writer of a run.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Locks a run for writing.
pub(crate) fn lock_run(folder: &Path, run: &str) -> Result<Lock> {
    let (path, file) = open(folder)?;
    // A reader holds the lock for the instant in which it asks whether a writer is alive.
    for pause in [0, 1, 5, 20, 50] {
        std::thread::sleep(Duration::from_millis(pause));
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => {
                return Err(RecorderError::io("lock", &path, source));
            }
        }
    }
    Err(RecorderError::Locked {
        path,
        run: run.to_owned(),
    })
}

/// Waits until nobody else changes what all runs of a set share.
pub(crate) fn lock_set(folder: &Path) -> Result<Lock> {
    let (path, file) = open(folder)?;
    file.lock()
        .map_err(|source| RecorderError::io("lock", &path, source))?;
    Ok(Lock { _file: file })
}

/// Whether a writer holds the lock of a run.
pub(crate) fn is_live(folder: &Path) -> bool {
    match File::open(folder.join(LOCK_FILE)) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

fn open(folder: &Path) -> Result<(PathBuf, File)> {
    let path = folder.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| RecorderError::io("lock", &path, source))?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_others_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let lock = lock_run(folder.path(), "a").unwrap();
        assert!(is_live(folder.path()));
        let message = lock_run(folder.path(), "a").unwrap_err().to_string();
        assert!(message.contains("another writer"), "{message}");
        drop(lock);
        assert!(!is_live(folder.path()));
        lock_run(folder.path(), "a").unwrap();
    }
}
