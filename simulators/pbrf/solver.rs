//! Newton's method by conjugate gradients, looking at gradients only.
//!
//! The objective's value is a sum of divergences that are tiny near the start, and differences of
//! it are lost in rounding long before the gradient is. Steps are therefore chosen by the slope
//! along the direction alone: a step is taken where the slope has fallen far enough towards 0.

use tch::Tensor;

/// A step is taken where the slope is at most this share of the slope at its start.
const SLOPE: f64 = 0.5;
/// Gradients per line search.
const TRIALS: u32 = 30;
/// By how much a step that is too short grows at most.
const GROWTH: f64 = 10.0;

/// A smooth function.
pub(super) trait Smooth {
    /// Its gradient at a point.
    fn gradient(&mut self, at: &Tensor) -> Tensor;
    /// Its Hessian at a point times a vector.
    fn hessian_times(&mut self, at: &Tensor, vector: &Tensor) -> Tensor;
}

/// Where a minimisation ended.
#[derive(Debug)]
pub(super) struct Minimum {
    /// The point.
    pub at: Tensor,
    /// Norm of the gradient there.
    pub gradient_norm: f64,
    /// Products with the Hessian.
    pub iterations: u32,
}

/// Goes down from `start` until the norm of the gradient is at most `goal`, with at most
/// `max_iterations` products with the Hessian; ends earlier, above the goal, where no step makes
/// progress. Directions end before curvature below `floor`, which is none of the function's own
/// near its minimum.
///
/// # Reference
/// Nocedal & Wright 2006, "Numerical optimization", algorithm 7.1 (line search Newton-CG).
pub(super) fn minimise(
    function: &mut dyn Smooth,
    start: Tensor,
    goal: f64,
    floor: f64,
    max_iterations: u32,
) -> Minimum {
    let mut gradient = function.gradient(&start);
    let first_norm = norm(&gradient);
    let mut minimum = Minimum {
        gradient_norm: first_norm,
        at: start,
        iterations: 0,
    };
    while minimum.gradient_norm > goal && minimum.iterations < max_iterations {
        let forcing = (minimum.gradient_norm / first_norm).sqrt().min(0.5);
        let enough = (forcing * minimum.gradient_norm).max(0.3 * goal);
        let left = max_iterations - minimum.iterations;
        let newton = direction(function, &minimum.at, &gradient, enough, floor, left);
        minimum.iterations += newton.products;
        let found = search(
            function,
            &minimum.at,
            &newton.direction,
            &gradient,
            newton.length,
        );
        let Some((at, next)) = found else {
            break;
        };
        gradient = next;
        minimum.gradient_norm = norm(&gradient);
        minimum.at = at;
    }
    minimum
}

/// Where to go from a point.
struct Newton {
    direction: Tensor,
    /// Length to try first.
    length: f64,
    /// Products with the Hessian that it took.
    products: u32,
}

/// `−H⁻¹ g` by conjugate gradients, to a residual of norm `enough`.
fn direction(
    function: &mut dyn Smooth,
    at: &Tensor,
    gradient: &Tensor,
    enough: f64,
    floor: f64,
    max_products: u32,
) -> Newton {
    let mut direction = gradient.zeros_like();
    let mut rest = gradient.neg();
    let mut along = rest.copy();
    let mut square = dot(&rest, &rest);
    for products in 1..=max_products {
        let curved = function.hessian_times(at, &along);
        let curvature = dot(&along, &curved);
        let is_convex = curvature > floor * dot(&along, &along);
        if !is_convex {
            // Along the gradient if this is the first direction, else as far as it was convex.
            let (direction, length) = match products {
                1 => (gradient.neg(), 1.0_f64.min(1.0 / square.sqrt())),
                _ => (direction, 1.0),
            };
            return Newton {
                direction,
                length,
                products,
            };
        }
        let step = square / curvature;
        direction += &along * step;
        rest -= curved * step;
        let next = dot(&rest, &rest);
        if next.sqrt() <= enough || products == max_products {
            return Newton {
                direction,
                length: 1.0,
                products,
            };
        }
        along = &rest + along * (next / square);
        square = next;
    }
    unreachable!("at least one product is allowed, and the last one ends the loop")
}

/// The first point along `direction` where the slope has fallen to [`SLOPE`] of its start, and
/// the gradient there; `None` if there is none to be found.
fn search(
    function: &mut dyn Smooth,
    start: &Tensor,
    direction: &Tensor,
    start_gradient: &Tensor,
    first: f64,
) -> Option<(Tensor, Tensor)> {
    let start_slope = dot(start_gradient, direction);
    if !(start_slope.is_finite() && start_slope < 0.0) {
        return None;
    }
    // The slope is negative at `low` and positive at `high`.
    let mut low = (0.0, start_slope);
    let mut high: Option<(f64, f64)> = None;
    let mut length = first;
    for _ in 0..TRIALS {
        let at = start + direction * length;
        let gradient = function.gradient(&at);
        let slope = dot(&gradient, direction);
        if slope.abs() <= SLOPE * start_slope.abs() {
            return Some((at, gradient));
        }
        if slope < 0.0 {
            let previous = std::mem::replace(&mut low, (length, slope));
            length = match high {
                Some(high) => between(low, high),
                None => beyond(previous, low),
            };
        } else {
            // A NaN, too, means that the step was too long.
            high = Some((length, slope));
            length = between(low, (length, slope));
        }
    }
    None
}

/// Where a line through two slopes of different sign crosses 0, kept off the ends.
fn between(low: (f64, f64), high: (f64, f64)) -> f64 {
    let width = high.0 - low.0;
    let share = low.1 / (low.1 - high.1);
    let share = if share.is_finite() { share } else { 0.5 };
    low.0 + width * share.clamp(0.1, 0.9)
}

/// Where a line through two negative slopes reaches 0, at most [`GROWTH`] times as far.
fn beyond(previous: (f64, f64), low: (f64, f64)) -> f64 {
    let rise = (low.1 - previous.1) / (low.0 - previous.0);
    let crossing = low.0 - low.1 / rise;
    if rise > 0.0 && crossing.is_finite() {
        crossing.clamp(1.5 * low.0, GROWTH * low.0)
    } else {
        GROWTH * low.0
    }
}

pub(super) fn norm(tensor: &Tensor) -> f64 {
    tensor.norm().double_value(&[])
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    a.dot(b).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// `½ xᵀ A x − rᵀ x` with `A = M Mᵀ + 0.01 I`, of condition about 10⁴.
    struct Quadratic {
        matrix: Tensor,
        right: Tensor,
    }

    impl Quadratic {
        fn new(size: i64) -> Self {
            let number = |scale: f64| (Tensor::arange(size * size, OPTIONS) * scale).sin();
            let m = number(0.77).view([size, size]);
            Self {
                matrix: m.matmul(&m.transpose(0, 1)) + Tensor::eye(size, OPTIONS) * 0.01,
                right: (Tensor::arange(size, OPTIONS) * 1.3).cos(),
            }
        }
    }

    impl Smooth for Quadratic {
        fn gradient(&mut self, at: &Tensor) -> Tensor {
            self.matrix.mv(at) - &self.right
        }

        fn hessian_times(&mut self, _: &Tensor, vector: &Tensor) -> Tensor {
            self.matrix.mv(vector)
        }
    }

    /// Rosenbrock's function, whose minimum is at (1, 1).
    struct Valley;

    impl Smooth for Valley {
        fn gradient(&mut self, at: &Tensor) -> Tensor {
            let (a, b) = (at.double_value(&[0]), at.double_value(&[1]));
            let bend = b - a * a;
            Tensor::from_slice(&[-2.0 * (1.0 - a) - 400.0 * a * bend, 200.0 * bend])
        }

        fn hessian_times(&mut self, at: &Tensor, vector: &Tensor) -> Tensor {
            let (a, b) = (at.double_value(&[0]), at.double_value(&[1]));
            let (u, v) = (vector.double_value(&[0]), vector.double_value(&[1]));
            let corner = 2.0 + 1200.0 * a * a - 400.0 * b;
            Tensor::from_slice(&[corner * u - 400.0 * a * v, 200.0 * v - 400.0 * a * u])
        }
    }

    /// A slope without a bottom.
    struct Slope(Tensor);

    impl Smooth for Slope {
        fn gradient(&mut self, _: &Tensor) -> Tensor {
            self.0.shallow_clone()
        }

        fn hessian_times(&mut self, _: &Tensor, vector: &Tensor) -> Tensor {
            vector.zeros_like()
        }
    }

    #[test]
    fn ref_the_minimum_of_a_quadratic_is_that_of_a_dense_solve() {
        let mut quadratic = Quadratic::new(12);
        let start = quadratic.right.zeros_like();
        let goal = 1e-10 * norm(&quadratic.right);
        let minimum = minimise(&mut quadratic, start, goal, 0.0, 500);
        assert!(minimum.gradient_norm <= goal, "{minimum:?}");
        let right = quadratic.right.unsqueeze(1);
        let expected = Tensor::linalg_solve(&quadratic.matrix, &right, true).squeeze_dim(1);
        let distance = norm(&(minimum.at - &expected)) / norm(&expected);
        assert!(distance < 1e-7, "{distance}");
    }

    #[test]
    fn a_valley_that_bends_is_followed_to_its_bottom() {
        for start in [[-1.2, 1.0], [0.0, 2.0]] {
            let minimum = minimise(&mut Valley, Tensor::from_slice(&start), 1e-9, 0.0, 200);
            assert!(minimum.gradient_norm <= 1e-9, "{minimum:?}");
            assert!((minimum.at - 1.0).abs().max().double_value(&[]) < 1e-8);
        }
    }

    #[test]
    fn few_iterations_and_slopes_without_a_bottom_end_above_the_goal() {
        let mut quadratic = Quadratic::new(12);
        let start = quadratic.right.zeros_like();
        let minimum = minimise(&mut quadratic, start.copy(), 1e-10, 0.0, 2);
        assert_eq!(minimum.iterations, 2);
        assert!(minimum.gradient_norm > 1e-10);
        let minimum = minimise(&mut Slope(quadratic.right), start, 1e-10, 0.0, 100);
        assert_eq!(minimum.iterations, 1);
    }

    #[test]
    fn a_minimum_takes_no_iteration() {
        let mut quadratic = Quadratic::new(3);
        quadratic.right = quadratic.right.zeros_like();
        let start = quadratic.right.copy();
        let minimum = minimise(&mut quadratic, start, 0.0, 0.0, 100);
        assert_eq!((minimum.iterations, minimum.gradient_norm), (0, 0.0));
    }
}
