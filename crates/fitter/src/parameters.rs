//! The parameters of all test examples, and the simulation that they define.

use crate::aligned::Aligned;
use crate::lanes::{Kernel, LANES, MulAdd, axpy, dispatch};
use crate::teacher_forced::{centre, neutral};
use crate::{Exposures, Shrinkage, Variant};
use rayon::prelude::*;

/// `A` and `B` of `n` training and `m` test examples.
///
/// They lie in blocks of [`LANES`] test examples, `[n × terms × LANES]` each, because that is how
/// fitting and simulating read them. What a variant does not have is not stored: `A` is 1 for
/// additive, `B` is 0 for multiplicative.
///
/// ```
/// use simfluence_fitter::{Exposures, Parameters, Variant};
/// // One training example that halves the loss, one that lowers it by 0.1.
/// let parameters = Parameters::from_tables(Variant::Linear, 2, 1, &[0.5, 1.0], &[0.0, -0.1]);
/// let mut exposures = Exposures::new(2);
/// exposures.push([(0, 1.0)])?;
/// exposures.push([(1, 1.0)])?;
/// assert_eq!(parameters.simulate(&exposures, &[4.0]), vec![4.0, 2.0, 1.9]);
/// # Ok::<(), simfluence_fitter::FitError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    variant: Variant,
    train_count: usize,
    test_count: usize,
    blocks: Vec<Aligned<f64, LANES>>,
}

impl Parameters {
    /// Parameters from row-major tables `[n × m]`; the table that the variant does not have is
    /// not read and may be empty.
    ///
    /// # Panics
    /// A table that the variant has is shorter than `n × m`.
    pub fn from_tables(
        variant: Variant,
        train_count: usize,
        test_count: usize,
        a: &[f64],
        b: &[f64],
    ) -> Self {
        let tables: Vec<&[f64]> = match variant {
            Variant::Linear => vec![a, b],
            Variant::Additive => vec![b],
            Variant::Multiplicative => vec![a],
        };
        let block = |first: usize| {
            let lanes = LANES.min(test_count - first);
            let mut values = Aligned::zeros(train_count * tables.len());
            for (i, terms) in values.chunks_exact_mut(tables.len()).enumerate() {
                for (entry, table) in terms.iter_mut().zip(&tables) {
                    let start = i * test_count + first;
                    entry[..lanes].copy_from_slice(&table[start..start + lanes]);
                }
            }
            values
        };
        Self {
            variant,
            train_count,
            test_count,
            blocks: (0..test_count.div_ceil(LANES))
                .into_par_iter()
                .map(|c| block(c * LANES))
                .collect(),
        }
    }

    /// Takes fitted blocks of test examples; lanes beyond the last test example become 0.
    pub(crate) fn from_blocks(
        variant: Variant,
        train_count: usize,
        test_count: usize,
        mut blocks: Vec<Aligned<f64, LANES>>,
    ) -> Self {
        if let Some(last) = blocks.last_mut() {
            let used = (test_count - 1) % LANES + 1;
            last.iter_mut().for_each(|lanes| lanes[used..].fill(0.0));
        }
        Self {
            variant,
            train_count,
            test_count,
            blocks,
        }
    }

    /// Which terms there are.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Number of training examples `n`.
    pub fn train_count(&self) -> usize {
        self.train_count
    }

    /// Number of test examples `m`.
    pub fn test_count(&self) -> usize {
        self.test_count
    }

    /// `A[i, j]`.
    pub fn a(&self, train: usize, test: usize) -> f64 {
        if !self.variant.has_a() {
            return 1.0;
        }
        self.entry(train, test, 0)
    }

    /// `B[i, j]`.
    pub fn b(&self, train: usize, test: usize) -> f64 {
        if !self.variant.has_b() {
            return 0.0;
        }
        self.entry(train, test, self.variant.terms() - 1)
    }

    fn entry(&self, train: usize, test: usize, term: usize) -> f64 {
        self.blocks[test / LANES][train * self.variant.terms() + term][test % LANES]
    }

    /// `A` as a row-major table `[n × m]`.
    pub fn a_table(&self) -> Vec<f64> {
        self.table(|i, j| self.a(i, j))
    }

    /// `B` as a row-major table `[n × m]`.
    pub fn b_table(&self) -> Vec<f64> {
        self.table(|i, j| self.b(i, j))
    }

    fn table(&self, entry: impl Fn(usize, usize) -> f64 + Sync) -> Vec<f64> {
        let mut values = vec![0.0; self.train_count * self.test_count];
        values
            .par_chunks_mut(self.test_count.max(1))
            .enumerate()
            .for_each(|(i, row)| {
                row.iter_mut()
                    .enumerate()
                    .for_each(|(j, v)| *v = entry(i, j))
            });
        values
    }

    /// The losses `L_0 … L_T` of every test example, `[T + 1 × m]` row-major, from `initial`
    /// (`[m]`), computed in f64 and rounded to f32 at the end.
    ///
    /// # Panics
    /// `exposures` of other training examples or `initial` of another length; callers check.
    pub fn simulate(&self, exposures: &Exposures, initial: &[f32]) -> Vec<f32> {
        self.check(exposures, initial);
        let columns: Vec<Vec<[f32; LANES]>> = (0..self.blocks.len())
            .into_par_iter()
            .map_init(Aligned::default, |scratch, block| {
                self.simulate_block(exposures, initial, block, scratch)
            })
            .collect();
        self.in_rows(&columns, exposures.len() + 1)
    }

    /// As [`Parameters::simulate`] for many curricula from the same `initial`: one table
    /// `[T + 1 × m]` each. Steps that begin several curricula are simulated once, and a block of
    /// parameters is read once for all of them, so that a thousand edits of one run cost little
    /// more than what they change. The losses are those of [`Parameters::simulate`] to the bit.
    ///
    /// ```
    /// use simfluence_fitter::{Exposures, Parameters, Variant};
    /// let parameters = Parameters::from_tables(Variant::Linear, 2, 1, &[0.5, 1.0], &[0.0, -0.1]);
    /// let curriculum = |ids: &[u32]| {
    ///     let mut exposures = Exposures::new(2);
    ///     ids.iter().try_for_each(|&id| exposures.push([(id, 1.0)]))?;
    ///     Ok::<_, simfluence_fitter::FitError>(exposures)
    /// };
    /// let many = [curriculum(&[0, 0])?, curriculum(&[0, 1])?];
    /// assert_eq!(parameters.simulate_many(&many, &[4.0]), [[4.0, 2.0, 1.0], [4.0, 2.0, 1.9]]);
    /// assert_eq!(parameters.last_losses(&many, &[4.0]), [1.0, 1.9]);
    /// # Ok::<(), simfluence_fitter::FitError>(())
    /// ```
    ///
    /// # Panics
    /// As [`Parameters::simulate`].
    pub fn simulate_many(&self, curricula: &[Exposures], initial: &[f32]) -> Vec<Vec<f32>> {
        /// Curricula whose losses are held twice while they are put into rows; the first of them
        /// shares no steps with those before.
        const TOGETHER: usize = 64;
        let prefixes = Prefixes::new(curricula);
        let mut tables = vec![Vec::new(); curricula.len()];
        for path in prefixes.path.chunks(TOGETHER) {
            let columns = self.each_block(curricula, initial, path, |states| {
                let rounded = states.iter().map(|s| s.map(|v| v as f32));
                rounded.collect::<Vec<[f32; LANES]>>()
            });
            for (place, &(curriculum, _)) in path.iter().enumerate() {
                let own: Vec<&[[f32; LANES]]> =
                    columns.iter().map(|block| &block[place][..]).collect();
                tables[curriculum] = self.in_rows(&own, curricula[curriculum].len() + 1);
            }
        }
        tables
    }

    /// The losses after the last step of each curriculum, `[curricula × m]`, computed as by
    /// [`Parameters::simulate_many`].
    ///
    /// # Panics
    /// As [`Parameters::simulate`].
    pub fn last_losses(&self, curricula: &[Exposures], initial: &[f32]) -> Vec<f32> {
        let path = Prefixes::new(curricula).path;
        let columns = self.each_block(curricula, initial, &path, |states| {
            states[states.len() - 1].map(|v| v as f32)
        });
        let m = self.test_count;
        let mut losses = vec![0.0; curricula.len() * m];
        for (block, column) in columns.iter().enumerate() {
            for (&(curriculum, _), lanes) in path.iter().zip(column) {
                let row = &mut losses[curriculum * m..(curriculum + 1) * m][block * LANES..];
                let count = row.len().min(LANES);
                row[..count].copy_from_slice(&lanes[..count]);
            }
        }
        losses
    }

    /// Per block of test examples and curriculum of the path, what `take` makes of its states
    /// after `0..=T` steps.
    fn each_block<R: Send>(
        &self,
        curricula: &[Exposures],
        initial: &[f32],
        path: &[(usize, usize)],
        take: impl Fn(&[[f64; LANES]]) -> R + Sync,
    ) -> Vec<Vec<R>> {
        for exposures in curricula {
            self.check(exposures, initial);
        }
        let entries = path.iter().map(|&(c, _)| curricula[c].values().len()).sum();
        let blocks = (0..self.blocks.len()).into_par_iter();
        let results = blocks.map_init(Aligned::default, |scratch, block| {
            let parameters = self.ready(block, entries, scratch);
            let mut states = vec![start_of(initial, block)];
            let each = path
                .iter()
                .enumerate()
                .map(|(place, &(curriculum, shared))| {
                    let exposures = &curricula[curriculum];
                    let shared = if place == 0 { 0 } else { shared };
                    states.truncate(shared + 1);
                    roll_out(
                        self.variant,
                        parameters,
                        exposures,
                        shared..exposures.len(),
                        states[shared],
                        |state| states.push(*state),
                    );
                    take(&states)
                });
            each.collect()
        });
        results.collect()
    }

    fn check(&self, exposures: &Exposures, initial: &[f32]) {
        let got = exposures.train_count();
        assert_eq!(got, self.train_count, "training examples");
        assert_eq!(initial.len(), self.test_count, "initial losses");
    }

    /// The parameters of a block, where they are quick to gather for `entries` exposures. Read in
    /// order they come at the speed of memory; gathered they would come at its latency. Worth a
    /// copy where most of them are needed.
    fn ready<'a>(
        &'a self,
        block: usize,
        entries: usize,
        scratch: &'a mut Aligned<f64, LANES>,
    ) -> &'a [[f64; LANES]] {
        if entries < self.train_count {
            return &self.blocks[block];
        }
        scratch.clone_from(&self.blocks[block]);
        scratch
    }

    /// The losses of all blocks, `[evaluations × LANES]` each, as one table `[evaluations × m]`.
    fn in_rows<C>(&self, columns: &[C], evaluations: usize) -> Vec<f32>
    where
        C: AsRef<[[f32; LANES]]> + Sync,
    {
        /// Rows that are filled at once: their ends of all columns stay in the caches.
        const ROWS: usize = 64;
        let m = self.test_count;
        let mut losses = vec![0.0; evaluations * m];
        if m == 0 {
            return losses;
        }
        let parts = losses.par_chunks_mut(m * ROWS).enumerate();
        parts.for_each(|(part, rows)| {
            for (block, column) in columns.iter().enumerate() {
                let own = &column.as_ref()[part * ROWS..];
                for (row, lanes) in rows.chunks_exact_mut(m).zip(own) {
                    let row = &mut row[block * LANES..];
                    match row.first_chunk_mut() {
                        Some(whole) => *whole = *lanes,
                        None => row.copy_from_slice(&lanes[..row.len()]),
                    }
                }
            }
        });
        losses
    }

    fn simulate_block(
        &self,
        exposures: &Exposures,
        initial: &[f32],
        block: usize,
        scratch: &mut Aligned<f64, LANES>,
    ) -> Vec<[f32; LANES]> {
        let start = start_of(initial, block);
        let parameters = self.ready(block, exposures.values().len(), scratch);
        let mut column = Vec::with_capacity(exposures.len() + 1);
        column.push(start.map(|v| v as f32));
        roll_out(
            self.variant,
            parameters,
            exposures,
            0..exposures.len(),
            start,
            |state| column.push(state.map(|v| v as f32)),
        );
        column
    }
}

/// `L_0` of the test examples of a block.
fn start_of(initial: &[f32], block: usize) -> [f64; LANES] {
    let mut start = [0.0; LANES];
    for (value, &loss) in start.iter_mut().zip(&initial[block * LANES..]) {
        *value = f64::from(loss);
    }
    start
}

/// An order of curricula in which each begins with as many steps of the one before as it can.
struct Prefixes {
    /// Curricula, and the steps that each shares with the one before it.
    path: Vec<(usize, usize)>,
}

impl Prefixes {
    fn new(curricula: &[Exposures]) -> Self {
        let mut order: Vec<usize> = (0..curricula.len()).collect();
        order.par_sort_by(|&x, &y| {
            let shared = curricula[x].shared_prefix(&curricula[y]);
            curricula[x].compare_row(&curricula[y], shared)
        });
        let mut before = None;
        let path = order.into_iter().map(|curriculum| {
            let shared = before.replace(curriculum).map_or(0, |before: usize| {
                curricula[before].shared_prefix(&curricula[curriculum])
            });
            (curriculum, shared)
        });
        Self {
            path: path.collect(),
        }
    }
}

/// Turns deviations `d` into parameters in place: adds `θ₀`, and gives training examples that a
/// test example has never seen the neutral value.
pub(crate) fn finish_block<const N: usize>(
    variant: Variant,
    shrinkage: Shrinkage,
    deviations: &mut [[f64; N]],
    has_seen: impl Fn(usize, usize) -> bool,
) {
    let form = crate::teacher_forced::Form { variant, shrinkage };
    let (centre, neutral) = (centre(form), neutral(variant));
    for (i, terms) in deviations.chunks_exact_mut(variant.terms()).enumerate() {
        for (k, lanes) in terms.iter_mut().enumerate() {
            for (l, value) in lanes.iter_mut().enumerate() {
                *value = if has_seen(i, l) {
                    *value + centre[k]
                } else {
                    neutral[k]
                };
            }
        }
    }
}

/// Simulates `N` test examples over the rows `rows` from `start`; `visit` sees the state after
/// every step. `parameters` are `[n × terms]`.
pub(crate) fn roll_out<const N: usize>(
    variant: Variant,
    parameters: &[[f64; N]],
    exposures: &Exposures,
    rows: std::ops::Range<usize>,
    start: [f64; N],
    visit: impl FnMut(&[f64; N]),
) {
    dispatch(RollOut {
        variant,
        parameters,
        exposures,
        rows,
        start,
        visit,
    });
}

struct RollOut<'a, const N: usize, V> {
    variant: Variant,
    parameters: &'a [[f64; N]],
    exposures: &'a Exposures,
    rows: std::ops::Range<usize>,
    start: [f64; N],
    visit: V,
}

impl<const N: usize, V: FnMut(&[f64; N])> Kernel for RollOut<'_, N, V> {
    type Output = ();

    #[inline(always)]
    fn run<M: MulAdd>(mut self) {
        let mut state = self.start;
        for row in self.rows {
            let (ids, values) = self.exposures.entries(row);
            state = match self.variant {
                Variant::Linear => {
                    let [alpha, beta] = mix::<2, N, M>(ids, values, self.parameters);
                    std::array::from_fn(|l| M::double(alpha[l], state[l], beta[l]))
                }
                Variant::Additive => {
                    let [beta] = mix::<1, N, M>(ids, values, self.parameters);
                    std::array::from_fn(|l| state[l] + beta[l])
                }
                Variant::Multiplicative => {
                    let [alpha] = mix::<1, N, M>(ids, values, self.parameters);
                    std::array::from_fn(|l| alpha[l] * state[l])
                }
            };
            (self.visit)(&state);
        }
    }
}

/// `Σ_i x(i) θ_{i,k}` of one row, per term.
#[inline(always)]
pub(crate) fn mix<const K: usize, const N: usize, M: MulAdd>(
    ids: &[u32],
    values: &[f64],
    parameters: &[[f64; N]],
) -> [[f64; N]; K] {
    let mut sums = [[0.0; N]; K];
    let (parameters, _) = parameters.as_chunks::<K>();
    for (&id, &x) in ids.iter().zip(values) {
        let terms = &parameters[id as usize];
        for k in 0..K {
            axpy::<f64, N, M>(&mut sums[k], x, &terms[k]);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::truth;

    fn exposures(n: usize, steps: usize) -> Exposures {
        let mut exposures = Exposures::new(n);
        for t in 0..steps {
            let members = [t % n, (3 * t + 1) % n, (5 * t + 2) % n, t % n];
            exposures
                .push(members.map(|i| (i as u32, 0.25)))
                .expect("ids are in range");
        }
        exposures
    }

    #[test]
    fn simulation_follows_the_equation_literally() {
        let (n, m, steps) = (9, 21, 30);
        let (a, b) = truth(n, m);
        let exposures = exposures(n, steps);
        let initial: Vec<f32> = (0..m).map(|j| 2.0 + j as f32 / 8.0).collect();
        for variant in [Variant::Linear, Variant::Additive, Variant::Multiplicative] {
            let parameters = Parameters::from_tables(variant, n, m, &a, &b);
            let got = parameters.simulate(&exposures, &initial);
            for j in 0..m {
                let mut state = f64::from(initial[j]);
                for t in 0..steps {
                    let mut alpha = if variant.has_a() { 0.0 } else { 1.0 };
                    let mut beta = 0.0;
                    for (i, x) in exposures.row(t) {
                        let at = i as usize * m + j;
                        alpha += if variant.has_a() { x * a[at] } else { 0.0 };
                        beta += if variant.has_b() { x * b[at] } else { 0.0 };
                    }
                    state = alpha * state + beta;
                    let error = (f64::from(got[(t + 1) * m + j]) - state).abs();
                    assert!(
                        error <= 1e-6 * state.abs(),
                        "{variant:?} step {} test {j}",
                        t + 1
                    );
                }
            }
        }
    }

    #[test]
    fn additive_and_multiplicative_are_special_cases_of_linear() {
        let (n, m) = (5, 10);
        let (a, b) = truth(n, m);
        let exposures = exposures(n, 12);
        let initial = vec![3.0; m];
        let simulate = |variant, a: &[f64], b: &[f64]| {
            Parameters::from_tables(variant, n, m, a, b).simulate(&exposures, &initial)
        };
        let (ones, zeros) = (vec![1.0; n * m], vec![0.0; n * m]);
        let pairs = [
            (
                simulate(Variant::Additive, &[], &b),
                simulate(Variant::Linear, &ones, &b),
            ),
            (
                simulate(Variant::Multiplicative, &a, &[]),
                simulate(Variant::Linear, &a, &zeros),
            ),
        ];
        for (special, general) in pairs {
            let differences = special.iter().zip(&general).map(|(s, g)| (s - g).abs());
            assert!(differences.fold(0.0, f32::max) <= 1e-6);
        }
    }

    #[test]
    fn many_curricula_give_what_each_gives_alone_to_the_bit() {
        let (n, m, steps) = (9, 21, 30);
        let (a, b) = truth(n, m);
        let base = exposures(n, steps);
        let initial: Vec<f32> = (0..m).map(|j| 2.0 + j as f32 / 8.0).collect();
        let edited = |at: usize, id: u32, length: usize| {
            let mut edited = Exposures::new(n);
            for t in 0..length {
                let same = t % steps;
                let entries: Vec<(u32, f64)> = match t == at {
                    true => vec![(id, 1.0)],
                    false => base.row(same).collect(),
                };
                edited.push(entries).expect("ids are in range");
            }
            edited
        };
        let mut many = vec![base.clone(), Exposures::new(n), base.clone()];
        for at in [0, 1, 17, 29] {
            many.extend([3, 8].map(|id| edited(at, id, steps)));
        }
        many.extend([edited(17, 3, 45), edited(17, 3, 20), edited(99, 0, 10)]);
        for variant in [Variant::Linear, Variant::Additive, Variant::Multiplicative] {
            let parameters = Parameters::from_tables(variant, n, m, &a, &b);
            let alone: Vec<Vec<f32>> = many
                .iter()
                .map(|exposures| parameters.simulate(exposures, &initial))
                .collect();
            assert_eq!(parameters.simulate_many(&many, &initial), alone);
            let last: Vec<f32> = alone
                .iter()
                .flat_map(|t| t[t.len() - m..].to_vec())
                .collect();
            assert_eq!(parameters.last_losses(&many, &initial), last);
        }
    }

    #[test]
    fn each_curriculum_shares_the_longest_prefix_that_any_before_it_has() {
        let with = |ids: &[u32]| {
            let mut exposures = Exposures::new(4);
            for &id in ids {
                exposures.push([(id, 1.0)]).expect("ids are in range");
            }
            exposures
        };
        let many = [
            with(&[0, 1, 2]),
            with(&[3]),
            with(&[0, 1, 3]),
            with(&[0, 2]),
            with(&[0, 1]),
        ];
        assert_eq!(
            Prefixes::new(&many).path,
            [(4, 0), (0, 2), (2, 2), (3, 1), (1, 0)]
        );
    }

    #[test]
    fn tables_come_back_as_they_went() {
        let (a, b) = truth(4, 13);
        let parameters = Parameters::from_tables(Variant::Linear, 4, 13, &a, &b);
        assert_eq!((parameters.a_table(), parameters.b_table()), (a, b));
    }
}
