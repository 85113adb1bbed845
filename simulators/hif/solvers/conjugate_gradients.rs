//! Conjugate gradients.

use super::{LinearOperator, SolveError, dots, largest, norms};
use tch::Tensor;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConjugateGradients {
    /// Largest relative residual `‖(C + δI) x − v‖ / ‖v‖` accepted.
    pub tolerance: f64,
    /// Most iterations.
    pub iterations: usize,
}

/// A solution with its residual.
#[derive(Debug)]
pub struct Solved {
    /// `[vectors × length]`.
    pub solution: Tensor,
    /// Largest relative residual, measured with the matrix at the end.
    pub residual: f64,
    /// Iterations made.
    pub iterations: usize,
}

/// Solves `(C + δI) x = v` for every row of `vectors`, all at the same time.
///
/// # Errors
/// A direction of no or negative curvature; a residual above the tolerance after the last
/// iteration; products that are not finite.
///
/// # Reference
/// Hestenes & Stiefel 1952; Martens 2010 (for curvature of networks).
pub fn conjugate_gradients(
    operator: &dyn LinearOperator,
    damping: f64,
    vectors: &Tensor,
    settings: &ConjugateGradients,
) -> Result<Solved, SolveError> {
    const SOLVER: &str = "conjugate gradients";
    let times = |x: &Tensor| operator.times(x) + x * damping;
    let wanted = norms(vectors).clamp_min(f64::MIN_POSITIVE);
    let mut x = vectors.zeros_like();
    let mut residual = vectors.copy();
    let mut direction = residual.copy();
    let mut square = dots(&residual, &residual);
    let mut iterations = 0;
    while largest(&(square.sqrt() / &wanted)) > settings.tolerance
        && iterations < settings.iterations
    {
        iterations += 1;
        let product = times(&direction);
        let curvature = dots(&direction, &product);
        let length = dots(&direction, &direction);
        check_curvature(&curvature, &length, &square, damping)?;
        // A vector that has converged to rounding has no direction left.
        let step = ratio(&square, &curvature);
        x += &direction * scale(&step, vectors);
        residual -= &product * scale(&step, vectors);
        let next = dots(&residual, &residual);
        let turn = ratio(&next, &square);
        direction = &residual + &direction * scale(&turn, vectors);
        square = next;
    }
    let left = norms(&(times(&x) - vectors)) / &wanted;
    let residual = largest(&left);
    if residual.is_nan() {
        return Err(SolveError::NotFinite { solver: SOLVER });
    }
    // The recursion's residual drifts from the true one by rounding: what has converged by it may be
    // a little off, what has used up its iterations may not.
    let is_done = largest(&(square.sqrt() / &wanted)) <= settings.tolerance;
    let accepted = if is_done { 10.0 } else { 1.0 } * settings.tolerance;
    if residual > accepted {
        return Err(SolveError::NotConverged {
            solver: SOLVER,
            iterations,
            residual,
            tolerance: settings.tolerance,
            damping,
        });
    }
    Ok(Solved {
        solution: x,
        residual,
        iterations,
    })
}

fn check_curvature(
    curvature: &Tensor,
    length: &Tensor,
    square: &Tensor,
    damping: f64,
) -> Result<(), SolveError> {
    const SOLVER: &str = "conjugate gradients";
    let active = square.gt(0.0);
    let quotient = (curvature / length).masked_select(&active);
    if quotient.numel() == 0 {
        return Ok(());
    }
    let smallest = quotient.min().double_value(&[]);
    if smallest.is_nan() {
        return Err(SolveError::NotFinite { solver: SOLVER });
    }
    if smallest <= 0.0 {
        return Err(SolveError::Indefinite {
            solver: SOLVER,
            smallest: smallest - damping,
            damping,
        });
    }
    Ok(())
}

/// `a / b`, 0 where `a` is 0.
fn ratio(a: &Tensor, b: &Tensor) -> Tensor {
    (a / b).where_self(&a.gt(0.0), &a.zeros_like())
}

fn scale(factors: &Tensor, like: &Tensor) -> Tensor {
    factors.to_kind(like.kind()).unsqueeze(1)
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{matrix, residual, vectors};
    use super::*;

    const TIGHT: ConjugateGradients = ConjugateGradients {
        tolerance: 1e-11,
        iterations: 200,
    };

    #[test]
    fn ref_solutions_are_those_of_the_inverse() {
        let operator = matrix(&[5.0, 2.0, 1.0, 0.3, 0.0, 1e-3]);
        let v = vectors(3, 6);
        let solved = conjugate_gradients(&operator, 0.01, &v, &TIGHT).unwrap();
        assert!(residual(&operator, 0.01, &solved.solution, &v) < 1e-10);
        // At most one iteration per distinct eigenvalue, in exact arithmetic.
        assert!(solved.iterations <= 9, "{}", solved.iterations);
    }

    #[test]
    fn a_vector_of_zeros_has_the_solution_zero_beside_others() {
        let operator = matrix(&[3.0, 1.0, 0.5]);
        let v = vectors(2, 3);
        let _ = v.get(0).fill_(0.0);
        let solved = conjugate_gradients(&operator, 0.1, &v, &TIGHT).unwrap();
        assert_eq!(solved.solution.get(0).abs().max().double_value(&[]), 0.0);
        assert!(
            residual(
                &operator,
                0.1,
                &solved.solution.narrow(0, 1, 1),
                &v.narrow(0, 1, 1)
            ) < 1e-9
        );
    }

    #[test]
    fn a_residual_above_the_tolerance_is_an_error_however_little_above() {
        let eigenvalues: Vec<f64> = (0..24).map(|k| 0.7_f64.powi(k)).collect();
        let operator = matrix(&eigenvalues);
        let v = vectors(2, 24);
        let mut solved = Vec::new();
        for iterations in 1..24 {
            let settings = ConjugateGradients {
                tolerance: 1e-2,
                iterations,
            };
            match conjugate_gradients(&operator, 1e-3, &v, &settings) {
                Ok(found) => {
                    assert!(found.residual <= 1e-2, "{}", found.residual);
                    solved.push(true);
                }
                Err(SolveError::NotConverged { residual, .. }) => {
                    assert!(residual > 1e-2, "{residual}");
                    solved.push(false);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(solved.contains(&true) && solved.contains(&false));
    }

    #[test]
    fn an_indefinite_matrix_is_refused_with_its_value_and_solved_when_damped_enough() {
        let operator = matrix(&[3.0, 1.0, 0.5, -0.4]);
        let v = vectors(2, 4);
        let error = conjugate_gradients(&operator, 0.1, &v, &TIGHT).unwrap_err();
        let SolveError::Indefinite { smallest, .. } = error else {
            panic!("{error}");
        };
        assert!((-0.4001..-0.1).contains(&smallest), "{smallest}");
        assert!(error.to_string().contains("gauss-newton"), "{error}");
        assert!(conjugate_gradients(&operator, 0.5, &v, &TIGHT).is_ok());
    }

    #[test]
    fn too_few_iterations_are_an_error_that_says_how_far_it_came() {
        let operator = matrix(&[3.0, 1.0, 0.5, 0.01]);
        let settings = ConjugateGradients {
            iterations: 2,
            ..TIGHT
        };
        let error = conjugate_gradients(&operator, 1e-3, &vectors(1, 4), &settings).unwrap_err();
        assert!(matches!(
            error,
            SolveError::NotConverged { iterations: 2, .. }
        ));
    }
}
