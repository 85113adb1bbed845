//! The matrix written out, for small models.

use super::{LinearOperator, SolveError};
use tch::{Kind, Tensor};

/// Most parameters that are written out.
pub const LIMIT: usize = 8_192;

/// Columns that are computed at once.
const COLUMNS: i64 = 64;

/// Solutions with the extremes of the spectrum.
#[derive(Debug)]
pub struct Dense {
    /// `[vectors × length]`.
    pub solution: Tensor,
    /// Smallest eigenvalue of `C`.
    pub smallest: f64,
    /// Largest eigenvalue of `C`.
    pub largest: f64,
    /// `δ`.
    pub damping: f64,
}

/// Solves `(C + δI) x = v` for every row of `vectors` by the eigendecomposition of `C` in 64 bits.
/// `damping` gets the largest eigenvalue and gives `δ`.
///
/// # Errors
/// Too many parameters; `C + δI` not positive definite; products that are not finite.
pub fn dense(
    operator: &dyn LinearOperator,
    damping: impl FnOnce(f64) -> f64,
    vectors: &Tensor,
) -> Result<Dense, SolveError> {
    let places = operator.support().nonzero().view([-1]);
    let parameters = places.size()[0];
    if parameters as usize > LIMIT {
        return Err(SolveError::TooLarge {
            parameters: parameters as usize,
            limit: LIMIT,
        });
    }
    let mut columns = Vec::new();
    for first in (0..parameters).step_by(COLUMNS as usize) {
        let count = COLUMNS.min(parameters - first);
        let units = Tensor::zeros(
            [count, vectors.size()[1]],
            (vectors.kind(), vectors.device()),
        );
        let index = places.narrow(0, first, count).unsqueeze(1);
        let ones = Tensor::ones([count, 1], (vectors.kind(), vectors.device()));
        let _ = units.shallow_clone().scatter_(1, &index, &ones);
        columns.push(operator.times(&units).index_select(1, &places));
    }
    let matrix = Tensor::cat(&columns, 0).to_kind(Kind::Double);
    if matrix.isfinite().all().int64_value(&[]) == 0 {
        return Err(SolveError::NotFinite {
            solver: "the exact solver",
        });
    }
    let matrix = (&matrix + matrix.transpose(0, 1)) * 0.5;
    let (values, basis) = matrix.linalg_eigh("L");
    let smallest = values.min().double_value(&[]);
    let largest = values.max().double_value(&[]);
    let damping = damping(largest);
    if smallest + damping <= 0.0 {
        return Err(SolveError::Indefinite {
            solver: "the exact solver",
            smallest,
            damping,
        });
    }
    let right = vectors.index_select(1, &places).to_kind(Kind::Double);
    let solved = (right.matmul(&basis) / (values + damping)).matmul(&basis.transpose(0, 1));
    let solution = vectors.zeros_like();
    let _ = solution
        .shallow_clone()
        .index_copy_(1, &places, &solved.to_kind(vectors.kind()));
    Ok(Dense {
        solution,
        smallest,
        largest,
        damping,
    })
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{matrix, residual, vectors};
    use super::*;

    #[test]
    fn ref_solutions_are_those_of_the_matrix() {
        let operator = matrix(&[5.0, 2.0, 1.0, 0.3, -0.2]);
        let v = vectors(3, 5);
        let solved = dense(&operator, |largest| 0.1 * largest, &v).unwrap();
        assert!((solved.smallest + 0.2).abs() < 1e-12);
        assert!((solved.largest - 5.0).abs() < 1e-12);
        assert!((solved.damping - 0.5).abs() < 1e-12);
        assert!(residual(&operator, 0.5, &solved.solution, &v) < 1e-12);
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        let error = dense(&matrix(&[1.0, -0.2]), |_| 0.1, &vectors(1, 2)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("raise the damping above 2.000e-1"),
            "{error}"
        );
    }
}
