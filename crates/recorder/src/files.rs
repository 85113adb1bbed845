//! Whole files: written atomically, errors with the path.

use crate::error::{Place, RecorderError, Result};
use simfluence_core::Artifact;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file so that it is there whole or not at all, even if the machine stops: a temporary
/// file in the same folder, fsync, rename, fsync of the folder.
///
/// # Errors
/// What the file system says, with the path; a file that was there before is then untouched.
///
/// ```
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("answer.txt");
/// simfluence_recorder::write_atomically(&path, b"42")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"42");
/// # Ok::<(), simfluence_recorder::RecorderError>(())
/// ```
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = write_temporary(path, bytes)?;
    rename(&temporary, path)?;
    sync_folder(path)
}

/// Reads a simulator, scores or checkpoint file.
///
/// # Errors
/// The file cannot be read or is malformed; both with the path.
pub fn read_artifact(path: &Path) -> Result<Artifact> {
    let bytes = read(path)?;
    Artifact::from_bytes(&bytes).map_err(|e| RecorderError::invalid(Place::file(path), e))
}

/// Writes a simulator, scores or checkpoint file atomically.
///
/// # Errors
/// A tensor that does not fill its shape; the file cannot be written; both with the path.
pub fn write_artifact(path: &Path, artifact: &Artifact) -> Result<()> {
    let bytes = artifact
        .to_bytes()
        .map_err(|e| RecorderError::invalid(Place::file(path), e))?;
    write_atomically(path, &bytes)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| RecorderError::io("read", path, e))
}

pub(crate) fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| RecorderError::io("create the folder", path, e))
}

/// Writes and syncs a temporary file beside `path`; its name ends in [`TEMPORARY`].
pub(crate) fn write_temporary(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(
        ".{name}.{}-{number}{TEMPORARY}",
        std::process::id()
    ));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(temporary),
        Err(source) => {
            remove_temporary(&temporary);
            Err(RecorderError::io("write", path, source))
        }
    }
}

/// Removes a temporary file as well as it can: the error that matters is the one before.
pub(crate) fn remove_temporary(temporary: &Path) {
    let _ = fs::remove_file(temporary);
}

/// The ending of temporary files; what a killed writer leaves behind.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Puts a temporary file in its place.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|source| {
        remove_temporary(from);
        RecorderError::io("write", to, source)
    })
}

/// Makes the renames in the folder of `path` last.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| RecorderError::io("write", folder, e))
}

/// Names in a folder, sorted; empty if there is no such folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(RecorderError::io("list", folder, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| RecorderError::io("list", folder, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_names_the_path_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("file");
        fs::write(&occupied, b"x").unwrap();
        let path = occupied.join("inside.txt");
        let message = write_atomically(&path, b"y").unwrap_err().to_string();
        assert!(
            message.contains("cannot write") && message.contains("inside.txt"),
            "{message}"
        );
        assert_eq!(names(folder.path()).unwrap(), vec!["file"]);
    }

    #[test]
    fn a_rename_onto_a_folder_names_the_path_and_removes_the_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        let message = write_atomically(&path, b"y").unwrap_err().to_string();
        assert!(message.contains("taken"), "{message}");
        assert_eq!(names(folder.path()).unwrap(), vec!["taken"]);
    }

    #[test]
    fn a_malformed_artifact_names_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("simulator.safetensors");
        fs::write(&path, b"not safetensors").unwrap();
        let message = read_artifact(&path).unwrap_err().to_string();
        assert!(message.contains("simulator.safetensors"), "{message}");
        assert!(
            message.contains("not a valid safetensors file"),
            "{message}"
        );
    }

    #[test]
    fn an_artifact_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let artifact = Artifact::new("test", 1);
        write_artifact(&path, &artifact).unwrap();
        assert_eq!(read_artifact(&path).unwrap(), artifact);
    }
}
