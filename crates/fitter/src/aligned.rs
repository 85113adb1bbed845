//! Vectors of lanes that begin on a cache line.

use crate::lanes::Real;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// `[len × N]` values of which the first begins on a cache line. Gathered from anywhere in such a
/// vector, eight lanes of f64 (or two terms of eight lanes of f32) are one line instead of parts
/// of two; that is a fifth of the time of a fit.
pub(crate) struct Aligned<T, const N: usize> {
    /// The values, with room before and after them for one line in all.
    padded: Vec<T>,
    first: usize,
    len: usize,
}

impl<T: Real, const N: usize> Aligned<T, N> {
    pub fn zeros(len: usize) -> Self {
        let padded = vec![T::ZERO; len * N + LINE / size_of::<T>()];
        Self {
            first: padded.as_ptr().align_offset(LINE),
            padded,
            len,
        }
    }
}

impl<T: Real, const N: usize> Default for Aligned<T, N> {
    fn default() -> Self {
        Self::zeros(0)
    }
}

impl<T: Real, const N: usize> From<&[[T; N]]> for Aligned<T, N> {
    fn from(values: &[[T; N]]) -> Self {
        let mut aligned = Self::zeros(values.len());
        aligned.copy_from_slice(values);
        aligned
    }
}

impl<T, const N: usize> Deref for Aligned<T, N> {
    type Target = [[T; N]];

    fn deref(&self) -> &[[T; N]] {
        &self.padded[self.first..].as_chunks().0[..self.len]
    }
}

impl<T, const N: usize> DerefMut for Aligned<T, N> {
    fn deref_mut(&mut self) -> &mut [[T; N]] {
        &mut self.padded[self.first..].as_chunks_mut().0[..self.len]
    }
}

impl<T: Real, const N: usize> Clone for Aligned<T, N> {
    /// Aligned again: a copy of the padded values would lie elsewhere.
    fn clone(&self) -> Self {
        Self::from(&**self)
    }

    fn clone_from(&mut self, other: &Self) {
        if self.len() != other.len() {
            *self = Self::zeros(other.len());
        }
        self.copy_from_slice(other);
    }
}

impl<T: PartialEq, const N: usize> PartialEq for Aligned<T, N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: std::fmt::Debug, const N: usize> std::fmt::Debug for Aligned<T, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_on_a_cache_line_and_copies_do_too() {
        for len in [0, 1, 3, 1000] {
            let mut aligned = Aligned::<f32, 8>::zeros(len);
            for (i, lanes) in aligned.iter_mut().enumerate() {
                *lanes = [i as f32; 8];
            }
            let copy = aligned.clone();
            assert_eq!(copy, aligned);
            for one in [&aligned, &copy] {
                assert_eq!(one.len(), len);
                assert_eq!(one.as_ptr().align_offset(LINE), 0);
            }
        }
    }
}
