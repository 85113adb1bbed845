//! The rollout objective: the error of the closed loop itself, anchored at the teacher-forced
//! solution.
//!
//! `F(θ) = Σ_t (L̂_t − L_t)² + λ_A‖A − A*‖² + λ_B‖B − B*‖²` over the measured steps `t ≥ 1` of
//! each run, `L̂_t = α_t L̂_{t-1} + β_t`, `L̂_0 = L_0`. With the adjoint
//! `g_t = 2(L̂_t − L_t) + α_{t+1} g_{t+1}` the gradient is `∂F/∂A_i = Σ_t g_t L̂_{t-1} x_t(i)`,
//! `∂F/∂B_i = Σ_t g_t x_t(i)`, plus the penalties'. It is minimised by argmin's L-BFGS in the
//! variables of [`Whitening`].

use crate::aligned::Aligned;
use crate::argmin_solvers::MEMORY;
use crate::exact::{self, Solved};
use crate::parameters::{finish_block, roll_out};
use crate::teacher_forced::{Block, Target, centre};
use crate::whitening::Whitening;
use crate::{FitError, Problem, Solver, Variant, fit::TEACHER_FORCED_TOLERANCE};
use argmin::core::{CostFunction, Error, Executor, Gradient, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use nalgebra::DVector;

/// Stands for the value of a rollout that overflows: worse than any other, and small enough for
/// the interpolation of the line search to compute with.
const OVERFLOW: f64 = 1e150;
/// Times that L-BFGS is started with an empty memory.
const STARTS: usize = 4;

/// Those of the sequences that can be simulated from their true `L_0`.
///
/// # Errors
/// None of them can.
pub(crate) fn sequences(problem: &Problem, sequences: &[usize]) -> Result<Vec<usize>, FitError> {
    let able: Vec<usize> = sequences
        .iter()
        .copied()
        .filter(|&s| problem.can_roll_out(s))
        .collect();
    if able.is_empty() {
        return Err(FitError::NoRollout {
            sequences: sequences.len(),
        });
    }
    Ok(able)
}

/// `F` of one test example, as a function of the deviation from the anchor.
struct ClosedLoop<'a> {
    problem: &'a Problem,
    sequences: &'a [usize],
    variant: Variant,
    /// Penalty per term.
    penalty: [f64; 2],
    /// `θ*`, `[n × terms]`.
    anchor: Aligned<f64, 1>,
    test: usize,
}

impl ClosedLoop<'_> {
    fn parameters(&self, deviation: &[[f64; 1]]) -> Vec<[f64; 1]> {
        let pairs = self.anchor.iter().zip(deviation);
        pairs.map(|(a, d)| [a[0] + d[0]]).collect()
    }

    /// `L̂_0 … L̂_T` of a sequence.
    fn simulate(&self, sequence: usize, parameters: &[[f64; 1]]) -> Vec<f64> {
        let place = &self.problem.places[sequence];
        let start = self
            .problem
            .loss(place.evaluation, self.test)
            .expect("sequences that can roll out have L_0");
        let mut states = vec![start];
        roll_out(
            self.variant,
            parameters,
            &self.problem.exposures,
            place.row..place.row + place.step_count,
            [start],
            |state| states.push(state[0]),
        );
        states
    }

    /// The errors `L̂_t − L_t` at the measured steps `t ≥ 1` of a sequence.
    fn errors<'b>(
        &'b self,
        sequence: usize,
        states: &'b [f64],
    ) -> impl Iterator<Item = (usize, f64)> + 'b {
        let place = &self.problem.places[sequence];
        place
            .steps
            .iter()
            .enumerate()
            .skip(1)
            .filter_map(move |(index, &step)| {
                let loss = self.problem.loss(place.evaluation + index, self.test)?;
                Some((step as usize, states[step as usize] - loss))
            })
    }

    fn value(&self, deviation: &[[f64; 1]]) -> f64 {
        let parameters = self.parameters(deviation);
        let terms = self.variant.terms();
        let mut total: f64 = deviation
            .iter()
            .enumerate()
            .map(|(p, d)| self.penalty[p % terms] * d[0] * d[0])
            .sum();
        for &sequence in self.sequences {
            let states = self.simulate(sequence, &parameters);
            total += self
                .errors(sequence, &states)
                .map(|(_, e)| e * e)
                .sum::<f64>();
        }
        if total < OVERFLOW { total } else { OVERFLOW }
    }

    fn derivative(&self, deviation: &[[f64; 1]]) -> Vec<[f64; 1]> {
        let parameters = self.parameters(deviation);
        let terms = self.variant.terms();
        let mut gradient: Vec<[f64; 1]> = deviation
            .iter()
            .enumerate()
            .map(|(p, d)| [2.0 * self.penalty[p % terms] * d[0]])
            .collect();
        for &sequence in self.sequences {
            self.add_adjoint(sequence, &parameters, &mut gradient);
        }
        if gradient.iter().any(|g| !g[0].is_finite()) {
            // At an overflow there is no slope to follow; the line search only steps back.
            gradient.fill([0.0]);
        }
        gradient
    }

    fn add_adjoint(&self, sequence: usize, parameters: &[[f64; 1]], gradient: &mut [[f64; 1]]) {
        let place = &self.problem.places[sequence];
        let states = self.simulate(sequence, parameters);
        let mut forcing = vec![0.0; place.step_count + 1];
        for (step, error) in self.errors(sequence, &states) {
            forcing[step] = 2.0 * error;
        }
        let terms = self.variant.terms();
        let mut adjoint = 0.0;
        for step in (1..=place.step_count).rev() {
            adjoint += forcing[step];
            let mut alpha = if self.variant.has_a() { 0.0 } else { 1.0 };
            for (id, x) in self.problem.exposures.row(place.row + step - 1) {
                let first = id as usize * terms;
                if self.variant.has_a() {
                    gradient[first][0] += adjoint * states[step - 1] * x;
                    alpha += x * parameters[first][0];
                }
                if self.variant.has_b() {
                    gradient[first + terms - 1][0] += adjoint * x;
                }
            }
            adjoint *= alpha;
        }
    }
}

/// `F` in the variables of a whitening, divided by a constant.
struct Whitened<'a, const K: usize> {
    inner: &'a ClosedLoop<'a>,
    whitening: &'a Whitening<K>,
    scale: f64,
}

impl<const K: usize> Whitened<'_, K> {
    fn slope(&self, u: &DVector<f64>) -> DVector<f64> {
        let gradient = self.inner.derivative(&self.whitening.to_parameters(u));
        self.whitening.to_gradient(&gradient) / self.scale
    }
}

impl<const K: usize> CostFunction for &Whitened<'_, K> {
    type Param = DVector<f64>;
    type Output = f64;

    fn cost(&self, u: &DVector<f64>) -> Result<f64, Error> {
        Ok(self.inner.value(&self.whitening.to_parameters(u)) / self.scale)
    }
}

impl<const K: usize> Gradient for &Whitened<'_, K> {
    type Param = DVector<f64>;
    type Gradient = DVector<f64>;

    fn gradient(&self, u: &DVector<f64>) -> Result<DVector<f64>, Error> {
        Ok(self.slope(u))
    }
}

/// Minimises the rollout objective of one test example; gives deviations from `θ₀`.
pub(crate) fn solve<const K: usize>(
    problem: &Problem,
    block: &Block<K, 1>,
    sequences: &[usize],
    target: &Target,
) -> Result<Solved<1>, FitError> {
    let test = block.data.first;
    let anchor_target = Target {
        tolerance: TEACHER_FORCED_TOLERANCE,
        ..*target
    };
    let mut anchor = exact::solve(block, &anchor_target)?.parameters;
    let form = target.form;
    finish_block(form.variant, form.shrinkage, &mut anchor, |id, lane| {
        block.has_seen(id, lane)
    });
    let penalty = target.penalty.of(form.variant);
    let closed_loop = ClosedLoop {
        problem,
        sequences,
        variant: form.variant,
        penalty,
        anchor,
        test,
    };
    let whitening = Whitening::<K>::new(block, penalty);
    let (u, iterations) = minimise(&closed_loop, &whitening, target, test)?;
    let deviation = whitening.to_parameters(&u);
    let objective = closed_loop.value(&deviation);
    let centre = centre(form);
    let mut parameters = Aligned::from(&closed_loop.parameters(&deviation)[..]);
    for (p, value) in parameters.iter_mut().enumerate() {
        value[0] -= centre[p % K];
    }
    Ok(Solved {
        parameters,
        iterations: [iterations],
        objective: [objective],
    })
}

fn minimise<const K: usize>(
    closed_loop: &ClosedLoop<'_>,
    whitening: &Whitening<K>,
    target: &Target,
    test: usize,
) -> Result<(DVector<f64>, u64), FitError> {
    let mut u = DVector::zeros(closed_loop.anchor.len());
    let scale = closed_loop.value(&whitening.to_parameters(&u));
    if scale >= OVERFLOW {
        return Err(FitError::RolloutOverflow { test });
    }
    let whitened = Whitened {
        inner: closed_loop,
        whitening,
        scale: if scale > 0.0 { scale } else { 1.0 },
    };
    let start = whitened.slope(&u).norm();
    let (mut reached, mut iterations) = (start, 0);
    for _ in 0..STARTS {
        if reached <= target.tolerance * start {
            break;
        }
        let (best, used) =
            run_lbfgs(&whitened, &u, target, target.tolerance * start).map_err(|error| {
                FitError::Solver {
                    test,
                    solver: Solver::Lbfgs.name(),
                    problem: error.to_string(),
                }
            })?;
        iterations += used;
        let Some(best) = best else { break };
        u = best;
        reached = whitened.slope(&u).norm();
    }
    // Not `>`: a NaN is unsolved as well.
    let solved = reached <= 10.0 * target.tolerance * start;
    if !solved {
        return Err(FitError::NotConverged {
            test,
            solver: Solver::Lbfgs.name(),
            iterations,
            residual: reached / start,
            tolerance: target.tolerance,
        });
    }
    Ok((u, iterations))
}

fn run_lbfgs<const K: usize>(
    whitened: &Whitened<'_, K>,
    start: &DVector<f64>,
    target: &Target,
    slope: f64,
) -> Result<(Option<DVector<f64>>, u64), Error> {
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY)
        .with_tolerance_grad(slope)?
        .with_tolerance_cost(0.0)?;
    let mut state = Executor::new(whitened, solver)
        .configure(|state| state.param(start.clone()).max_iters(target.max_iterations))
        .ctrlc(false)
        .run()?
        .state;
    Ok((state.take_best_param(), state.get_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::noisy_problem;

    fn closed_loop<'a>(
        problem: &'a Problem,
        sequences: &'a [usize],
        variant: Variant,
    ) -> ClosedLoop<'a> {
        let anchor: Vec<[f64; 1]> = (0..problem.train_count())
            .flat_map(|i| {
                let (a, b) = (0.9 + 0.02 * (i % 5) as f64, 0.1 - 0.03 * (i % 7) as f64);
                match variant {
                    Variant::Linear => vec![[a], [b]],
                    Variant::Additive => vec![[b]],
                    Variant::Multiplicative => vec![[a]],
                }
            })
            .collect();
        ClosedLoop {
            problem,
            sequences,
            variant,
            penalty: [0.3, 0.7],
            anchor: Aligned::from(&anchor[..]),
            test: 1,
        }
    }

    #[test]
    fn ref_the_adjoint_gradient_agrees_with_central_differences() {
        let problem = noisy_problem(12, 3, 4, 25, 3, 5);
        let sequences = problem.all_sequences();
        for variant in [Variant::Linear, Variant::Additive, Variant::Multiplicative] {
            let objective = closed_loop(&problem, &sequences, variant);
            let size = objective.anchor.len();
            let at: Vec<[f64; 1]> = (0..size)
                .map(|p| [0.01 * ((p * 7) % 11) as f64 - 0.05])
                .collect();
            let gradient = objective.derivative(&at);
            for p in 0..size {
                let (mut up, mut down) = (at.clone(), at.clone());
                let h = 1e-5;
                up[p][0] += h;
                down[p][0] -= h;
                let difference = (objective.value(&up) - objective.value(&down)) / (2.0 * h);
                let error = (gradient[p][0] - difference).abs();
                assert!(
                    error <= 1e-6 * (1.0 + difference.abs()),
                    "{variant:?} parameter {p}: {} against {difference}",
                    gradient[p][0]
                );
            }
        }
    }
}
