//! IDX files, the format of MNIST and its relatives, plain or gzip.
//!
//! Two zero bytes, a byte for the type of the values, one for the number of dimensions, the length
//! of each dimension as a big-endian 32-bit integer, and the values.

use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

/// The type of values that is read: unsigned bytes.
const UNSIGNED_BYTE: u8 = 0x08;

/// What gzip files begin with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The values of an IDX file of unsigned bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idx {
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// All values, those of the last dimension next to each other.
    pub values: Vec<u8>,
}

impl Idx {
    /// Reads a file of unsigned bytes with so many dimensions. No more is read than the header
    /// announces and one byte.
    ///
    /// # Errors
    /// A file that cannot be read, of another type or with other dimensions, or with fewer or more
    /// values than its header says.
    pub fn read(path: &Path, dimensions: u8) -> Result<Self, IdxError> {
        let unreadable = |source: std::io::Error| IdxError::Unreadable {
            path: path.to_owned(),
            problem: source.to_string(),
        };
        let mut reader = open(path).map_err(unreadable)?;
        let mut magic = [0; 4];
        let expected = [0, 0, UNSIGNED_BYTE, dimensions];
        let got = read_up_to(&mut reader, &mut magic).map_err(unreadable)?;
        if magic[..got] != expected {
            return Err(IdxError::Magic {
                path: path.to_owned(),
                expected,
                got: magic[..got].to_vec(),
            });
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let mut length = [0; 4];
            reader.read_exact(&mut length).map_err(unreadable)?;
            shape.push(u32::from_be_bytes(length) as usize);
        }
        let wrong = |got: usize| IdxError::Size {
            path: path.to_owned(),
            shape: shape.clone(),
            got,
        };
        let count = product(&shape);
        let mut values = Vec::new();
        let mut rest = reader.take((count as u64).saturating_add(1));
        rest.read_to_end(&mut values).map_err(unreadable)?;
        if values.len() != count {
            return Err(wrong(values.len()));
        }
        Ok(Self { shape, values })
    }
}

/// How many values have this shape, or as many as there can be.
fn product(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, &length| n.saturating_mul(length))
}

/// The bytes of a file, unpacked if they are packed.
fn open(path: &Path) -> std::io::Result<Box<dyn Read>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut start = [0; 2];
    let is_gzip = read_up_to(&mut file, &mut start)? == 2 && start == GZIP;
    file.rewind()?;
    Ok(match is_gzip {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    })
}

/// Fills as much of a buffer as there is to read.
fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut bytes = Vec::new();
    let count = reader.take(buffer.len() as u64).read_to_end(&mut bytes)?;
    buffer[..count].copy_from_slice(&bytes);
    Ok(count)
}

/// Why an IDX file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdxError {
    /// The file cannot be opened or read, or ends within its header.
    #[error("cannot read {}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
    /// Another kind of file.
    #[error(
        "{}: an IDX file of unsigned bytes with {} dimension(s) begins with the bytes {expected:02x?}, this one with {got:02x?}; images have 3 dimensions, labels 1",
        path.display(), expected[3]
    )]
    Magic {
        /// The file.
        path: PathBuf,
        /// The first four bytes of such a file.
        expected: [u8; 4],
        /// Those found.
        got: Vec<u8>,
    },
    /// Another number of values than the header says.
    #[error(
        "{}: the header says {shape:?} values of one byte, but {} follow; the file is damaged or was cut off",
        path.display(),
        if *got > product(shape) { "more".to_owned() } else { got.to_string() }
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Length of each dimension.
        shape: Vec<usize>,
        /// Values found; no more than one too many are looked for.
        got: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn bytes() -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3];
        for length in [2_u32, 3, 2] {
            bytes.extend(length.to_be_bytes());
        }
        bytes.extend(0..12);
        bytes
    }

    fn read(bytes: &[u8], dimensions: u8) -> Result<Idx, IdxError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        Idx::read(&path, dimensions)
    }

    #[test]
    fn plain_and_packed_files_are_read_whatever_their_name() {
        let idx = read(&bytes(), 3).unwrap();
        assert_eq!(idx.shape, [2, 3, 2]);
        assert_eq!(idx.values, (0..12).collect::<Vec<u8>>());
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&bytes()).unwrap();
        assert_eq!(read(&packed.finish().unwrap(), 3), Ok(idx));
    }

    #[test]
    fn other_files_are_refused_with_what_was_found() {
        for (file, dimensions) in [
            (bytes(), 1),
            (b"\x00\x00\x0d\x03rest".to_vec(), 3),
            (b"PK".to_vec(), 3),
            (Vec::new(), 1),
        ] {
            let error = read(&file, dimensions).unwrap_err();
            assert!(matches!(&error, IdxError::Magic { got, .. } if file.starts_with(got)));
        }
        let missing = Idx::read(Path::new("nowhere"), 3).unwrap_err().to_string();
        assert!(missing.contains("cannot read nowhere"), "{missing}");
    }

    #[test]
    fn headers_that_lie_are_refused_without_believing_them() {
        let cut = &bytes()[..bytes().len() - 1];
        let message = read(cut, 3).unwrap_err().to_string();
        assert!(message.contains("[2, 3, 2]") && message.contains("but 11 follow"));
        let long = [&bytes()[..], &[0]].concat();
        let message = read(&long, 3).unwrap_err().to_string();
        assert!(message.contains("but more follow"), "{message}");
        let mut huge = bytes();
        huge[4..16].fill(0xff);
        assert!(matches!(read(&huge, 3), Err(IdxError::Size { .. })));
        let within_header = read(&bytes()[..9], 3);
        assert!(matches!(within_header, Err(IdxError::Unreadable { .. })));
    }
}
