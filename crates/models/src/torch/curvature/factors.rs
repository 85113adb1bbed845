//! Curvature in factors that are easy to invert: EK-FAC, K-FAC and diagonal.
//!
//! The Fisher matrix of a linear layer with input `a` (a 1 behind it for the bias) and output
//! gradient `d` is approximated by `A ⊗ S`, `A = E[a aᵀ]`, `S = E[d dᵀ]`. With the eigenvectors
//! `Q_A`, `Q_S` it is diagonal in the basis `Q_S · Q_Aᵀ`; K-FAC takes the products of the
//! eigenvalues for its diagonal, EK-FAC the second moments of the gradients themselves in that
//! basis, `Λ = E[(Q_Sᵀ G Q_A)²]`. Parameters that are no plain matrix (norms, embeddings, a tied
//! output) have the diagonal of their second moments in every kind.

use super::super::gradients::{
    Block, BlockMetric, Captured, GradientError, GradientSettings, Metric, blocks, by_length, pick,
};
use super::super::model::{Draw, Model, Outputs, Targets, check_all};
use super::check_weights;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use simfluence_core::Progress;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// How curvature is factored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactorKind {
    /// Kronecker factors' eigenvectors, corrected eigenvalues.
    Ekfac,
    /// Kronecker factors.
    Kfac,
    /// The diagonal of the second moments of the gradients.
    Diagonal,
}

/// Which targets the gradients in the expectations are taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Drawn from the model's own predictions, so many times per example: the Fisher matrix, which
    /// is the Gauss-Newton matrix.
    Sampled {
        /// Seed of the draws.
        seed: u64,
        /// Draws per example, at least 1.
        draws: u32,
    },
    /// The examples' own: the empirical Fisher matrix `E[g gᵀ]` of the gradients of whole examples.
    /// Of a loss that is a mean over `K` targets it is smaller than the Fisher matrix, by about `K`.
    Given,
    /// The expectation over all targets taken exactly: one backward pass per position and class.
    Expected,
}

/// What is added to the eigenvalues before they are inverted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Damping {
    /// This much, above 0.
    Absolute(f64),
    /// This much times the mean eigenvalue of each block, above 0.
    Relative(f64),
}

/// Factored curvature of a weighted training loss.
#[derive(Debug)]
pub struct Factors {
    blocks: Vec<BlockFactors>,
    gradient_evaluations: u64,
}

#[derive(Debug)]
struct BlockFactors {
    block: Block,
    /// `Q_S` and `Q_A`.
    basis: Option<(Tensor, Tensor)>,
    /// `[rows × columns]`, in the basis.
    eigenvalues: Tensor,
}

/// The eigenvalues of one block of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerCurvature {
    /// Name of the layer.
    pub layer: String,
    /// Smallest eigenvalue.
    pub smallest: f64,
    /// Mean eigenvalue.
    pub mean: f64,
    /// Largest eigenvalue.
    pub largest: f64,
}

impl Factors {
    /// `(F + δI)⁻¹`, as a metric for inner products.
    ///
    /// # Errors
    /// A damping that is not positive and finite, or relative where a block has no curvature.
    pub fn inverse(&self, damping: Damping) -> Result<Metric, FactorsError> {
        let amount = match damping {
            Damping::Absolute(amount) | Damping::Relative(amount) => amount,
        };
        if !(amount.is_finite() && amount > 0.0) {
            return Err(FactorsError::Damping { got: amount });
        }
        let invert = |factors: &BlockFactors| {
            let mean = factors.eigenvalues.mean(Kind::Double).double_value(&[]);
            let added = match damping {
                Damping::Absolute(amount) => amount,
                Damping::Relative(factor) => factor * mean,
            };
            if !(added.is_finite() && added > 0.0) {
                return Err(FactorsError::NoCurvature {
                    layer: factors.block.layer.clone(),
                    mean,
                });
            }
            let rotation = (factors.basis.as_ref())
                .map(|(rows, columns)| (rows.shallow_clone(), columns.shallow_clone()));
            Ok(BlockMetric {
                rotation,
                weights: (&factors.eigenvalues + added).reciprocal(),
            })
        };
        let inverses: Result<Vec<BlockMetric>, FactorsError> =
            self.blocks.iter().map(invert).collect();
        Ok(Metric::Blocks(inverses?))
    }

    /// `(F + δI)⁻¹ v` of every row of `vectors`, `[vectors × flat length]`.
    ///
    /// # Errors
    /// As [`Factors::inverse`].
    pub fn solve(&self, vectors: &Tensor, damping: Damping) -> Result<Tensor, FactorsError> {
        let Metric::Blocks(inverses) = self.inverse(damping)? else {
            unreachable!("factors are inverted block by block");
        };
        let solved = Tensor::zeros_like(vectors);
        for (factors, inverse) in self.blocks.iter().zip(&inverses) {
            // A block may be a view of the vectors: nothing is changed in place.
            let mut block = factors.block.cut(vectors);
            if let Some((rows, columns)) = &inverse.rotation {
                block = rows.transpose(0, 1).matmul(&block).matmul(columns);
            }
            let mut block = &block * &inverse.weights;
            if let Some((rows, columns)) = &inverse.rotation {
                block = rows.matmul(&block).matmul(&columns.transpose(0, 1));
            }
            factors.block.paste(&block, &solved);
        }
        Ok(solved)
    }

    /// The eigenvalues of every block.
    pub fn layers(&self) -> Vec<LayerCurvature> {
        let describe = |factors: &BlockFactors| {
            let values = factors.eigenvalues.to_kind(Kind::Double);
            LayerCurvature {
                layer: factors.block.layer.clone(),
                smallest: values.min().double_value(&[]),
                mean: values.mean(Kind::Double).double_value(&[]),
                largest: values.max().double_value(&[]),
            }
        };
        self.blocks.iter().map(describe).collect()
    }

    /// Gradients evaluated to fit the factors.
    pub fn gradient_evaluations(&self) -> u64 {
        self.gradient_evaluations
    }
}

/// Fits the factors of the curvature of `Σ_k w_k L_k`, with `w` the `weights`.
///
/// EK-FAC passes over the examples twice (covariances, then eigenvalues in their basis), the
/// others once. Progress is counted in examples.
///
/// # Errors
/// An example that the model cannot read; weights of another number, negative, not finite or all
/// 0; covariances that are not finite.
///
/// # Reference
/// Martens & Grosse 2015 (K-FAC); George et al. 2018 (eigenvalue correction); Grosse et al. 2023,
/// section 2.2; Kronfluence.
#[allow(clippy::too_many_arguments)]
pub fn fit_factors<M: Model>(
    model: &M,
    examples: &[M::Example],
    weights: &[f64],
    kind: FactorKind,
    labels: Labels,
    settings: &GradientSettings,
    progress: &dyn Progress,
) -> Result<Factors, FactorsError> {
    check_all(model, examples)
        .map_err(|(example, problem)| GradientError::TrainExample { example, problem })?;
    check_weights(weights, examples.len())?;
    tch::set_num_threads(settings.threads.max(1) as i32);
    let total: f64 = weights.iter().sum();
    let mut order = by_length(model, examples);
    order.retain(|&i| weights[i] > 0.0);
    let longest = model.batch(&[&examples[order[0]]]);
    let longest = Captured::new(model, &longest, Outputs::losses);
    let blocks = blocks(model.layout(), &longest);
    let largest = blocks.iter().map(Block::len).max().unwrap_or(1) as usize;
    let value = model.kind().elt_size_in_bytes();
    let within =
        |share: f64, bytes: usize| ((settings.memory as f64 * share) as usize / bytes).max(1);
    let fits = within(BATCH_SHARE, COPIES * longest.bytes().max(1));
    let mut fit = Fit {
        model,
        labels,
        blocks,
        formed_at_once: within(FORMED_SHARE, largest * value) as i64,
        batches: order
            .chunks(settings.batch_size.clamp(1, fits))
            .map(|ids| {
                let shares: Vec<f64> = ids.iter().map(|&i| weights[i] / total).collect();
                (pick(examples, ids), shares)
            })
            .collect(),
        total,
        threads: settings.threads.max(1) as usize,
        keep_bytes: match kind {
            FactorKind::Ekfac => (settings.memory as f64 * KEPT_SHARE) as usize,
            FactorKind::Kfac | FactorKind::Diagonal => 0,
        },
        kept: Kept::new(labels),
        progress,
        evaluations: 0,
        scratch: Tensor::zeros([0], (model.kind(), model.device())),
    };
    let passes = if kind == FactorKind::Ekfac { 2 } else { 1 };
    progress.begin("curvature", passes * order.len() as u64);
    let mut factors = match kind {
        FactorKind::Diagonal => fit.diagonal(),
        FactorKind::Kfac | FactorKind::Ekfac => fit.kronecker(kind)?,
    };
    if kind != FactorKind::Diagonal {
        fit.correct(&mut factors, kind);
    }
    progress.end();
    Ok(Factors {
        blocks: factors,
        gradient_evaluations: fit.evaluations,
    })
}

/// Share of the memory for a batch on its way through the model, for formed gradients, and for what
/// the first pass keeps for the second.
const BATCH_SHARE: f64 = 0.3;
const FORMED_SHARE: f64 = 0.1;
const KEPT_SHARE: f64 = 0.45;

/// What a batch takes in units of its captured layers: those, as much in the graph, and scaled and
/// rotated copies.
const COPIES: usize = 4;

struct Fit<'a, M: Model> {
    model: &'a M,
    labels: Labels,
    blocks: Vec<Block>,
    /// Examples whose gradients of a block are formed at once.
    formed_at_once: i64,
    /// Examples and their shares, which sum to 1 over all batches.
    batches: Vec<(Vec<&'a M::Example>, Vec<f64>)>,
    /// What the given weights sum to.
    total: f64,
    threads: usize,
    /// Bytes of captured gradients that one pass may keep for the next.
    keep_bytes: usize,
    kept: Kept,
    progress: &'a dyn Progress,
    evaluations: u64,
    scratch: Tensor,
}

/// The first batches' captured gradients, so that the next pass need not run them through the
/// model again; it finds the same labels.
struct Kept {
    /// Of each batch, all draws or choices of its labels.
    batches: Vec<Vec<Captured>>,
    bytes: usize,
    /// What draws the labels of the batch that follows.
    rng: ChaCha8Rng,
    /// Whether every batch so far was kept.
    is_open: bool,
}

impl Kept {
    fn new(labels: Labels) -> Self {
        let seed = match labels {
            Labels::Sampled { seed, .. } => seed,
            Labels::Given | Labels::Expected => 0,
        };
        Self {
            batches: Vec::new(),
            bytes: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            is_open: true,
        }
    }

    /// Keeps a batch of so many bytes if those before were kept and there is room; `rng` draws the
    /// next one's labels.
    fn offer(&mut self, batch: Vec<Captured>, bytes: usize, rng: &ChaCha8Rng, most_bytes: usize) {
        self.is_open = self.is_open && self.bytes + bytes <= most_bytes;
        if self.is_open {
            self.bytes += bytes;
            self.batches.push(batch);
            self.rng = rng.clone();
        }
    }
}

/// Sums of `w a aᵀ` and `w d dᵀ` of a block over positions, with `w` the shares of the examples;
/// the lower triangles.
struct Covariances {
    rows: Tensor,
    columns: Tensor,
    /// Share-weighted number of positions.
    positions: f64,
    /// The layer's input in the batch at hand, and 1 at the positions that count, 0 at padding.
    batch: Option<(Tensor, Tensor)>,
}

impl<M: Model> Fit<'_, M> {
    /// Calls `take` for every batch and draw of the labels or choice of a label with the captured
    /// gradients, each times the root of its probability, and the examples' shares; and `close`
    /// after the last of a batch.
    fn pass(
        &mut self,
        mut take: impl FnMut(&mut Tensor, &Captured, &Tensor),
        mut close: impl FnMut(&Tensor),
    ) {
        let kept = std::mem::replace(&mut self.kept, Kept::new(self.labels));
        let mut rng = kept.rng;
        let mut known = kept.batches.into_iter();
        for (examples, shares) in &self.batches {
            let shares = Tensor::from_slice(shares)
                .to_device(self.model.device())
                .to_kind(self.model.kind());
            let scratch = &mut self.scratch;
            if let Some(batch) = known.next() {
                batch
                    .iter()
                    .for_each(|captured| take(scratch, captured, &shares));
            } else {
                let batch = self.model.batch(examples);
                let losses = |outputs: &Outputs| losses_of(outputs, self.labels, &mut rng);
                let (mut keep, keep_bytes) = (Vec::new(), self.keep_bytes);
                let (kept, mut bytes) = (&mut self.kept, 0);
                let count = Captured::each(self.model, &batch, losses, |captured| {
                    take(scratch, &captured, &shares);
                    bytes += captured.bytes();
                    if kept.is_open && kept.bytes + bytes <= keep_bytes {
                        keep.push(captured);
                    }
                });
                // A part of a batch is of no use.
                kept.offer(keep, bytes, &rng, keep_bytes);
                self.evaluations += (count * examples.len()) as u64;
            }
            close(&shares);
            self.progress.advance(examples.len() as u64);
        }
    }

    fn zeros(&self, shape: [i64; 2]) -> Tensor {
        Tensor::zeros(shape, (self.model.kind(), self.model.device()))
    }

    fn diagonal(&mut self) -> Vec<BlockFactors> {
        let zero = |block: Block| BlockFactors {
            eigenvalues: self.zeros([block.rows, block.columns]),
            basis: None,
            block,
        };
        let mut factors: Vec<BlockFactors> = self.blocks.iter().cloned().map(zero).collect();
        self.correct(&mut factors, FactorKind::Diagonal);
        factors
    }

    /// Bases and K-FAC's eigenvalues of the plain matrices.
    fn kronecker(&mut self, kind: FactorKind) -> Result<Vec<BlockFactors>, FactorsError> {
        let blocks = self.blocks.clone();
        let mut sums: Vec<Option<Covariances>> = Vec::new();
        for block in &blocks {
            sums.push(block.is_plain().then(|| Covariances {
                rows: self.zeros([block.rows, block.rows]),
                columns: self.zeros([block.columns, block.columns]),
                positions: 0.0,
                batch: None,
            }));
        }
        let sums = RefCell::new(sums);
        self.pass(
            |_, captured, shares| {
                for (block, sum) in blocks.iter().zip(sums.borrow_mut().iter_mut()) {
                    if let (Some(sum), Some((left, right))) = (sum, block.factors(captured)) {
                        sum.add(left, right, shares);
                    }
                }
            },
            |shares| {
                let mut sums = sums.borrow_mut();
                sums.iter_mut().flatten().for_each(|sum| sum.close(shares));
            },
        );
        // There is no pass after the next.
        self.keep_bytes = 0;
        let sums = sums.into_inner();
        let mut matrices = Vec::new();
        for (block, sum) in blocks.iter().zip(&sums) {
            let sides = sum.iter().flat_map(|sum| [&sum.rows, &sum.columns]);
            matrices.extend(sides.map(|side| (side.shallow_clone(), &block.layer[..])));
        }
        let mut eigen = eigen_of_all(matrices, self.threads)?.into_iter();
        let mut next = || eigen.next().expect("every side of every sum is decomposed");
        let mut factors = Vec::new();
        for (block, sum) in blocks.iter().cloned().zip(sums) {
            let shape = [block.rows, block.columns];
            factors.push(match sum {
                None => BlockFactors {
                    eigenvalues: self.zeros(shape),
                    basis: None,
                    block,
                },
                Some(sum) => {
                    let (rows, columns) = (next(), next());
                    let mut factors = sum.factors(block, rows, columns);
                    match kind {
                        // They are measured in the second pass.
                        FactorKind::Ekfac => factors.eigenvalues = self.zeros(shape),
                        _ => factors.eigenvalues *= self.total,
                    }
                    factors
                }
            });
        }
        Ok(factors)
    }

    /// Adds the second moments of the gradients in the bases where they are needed.
    fn correct(&mut self, factors: &mut [BlockFactors], kind: FactorKind) {
        let needed = |f: &BlockFactors| f.basis.is_none() || kind == FactorKind::Ekfac;
        let blocks: Vec<Block> = factors.iter().map(|f| f.block.clone()).collect();
        let (total, at_once) = (self.total, self.formed_at_once);
        self.pass(
            |scratch, captured, shares| {
                let bases = factors.iter().map(|f| f.basis.as_ref());
                let rotated = captured.scaled(&shares.sqrt()).rotated(&blocks, bases);
                for factors in factors.iter_mut().filter(|f| needed(f)) {
                    let block = &factors.block;
                    for first in (0..rotated.examples).step_by(at_once as usize) {
                        let count = at_once.min(rotated.examples - first);
                        let squares = squares(block, &rotated.narrow(first, count), scratch);
                        factors.eigenvalues += block.as_formed(&squares) * total;
                    }
                }
            },
            |_| (),
        );
    }
}

/// Sums over examples of the squares of a block's gradients, `[formed shape]`, formed in `scratch`.
fn squares(block: &Block, captured: &Captured, scratch: &mut Tensor) -> Tensor {
    let columns = block.formed_shape()[1];
    let of_stripe = |(first, height): (i64, i64)| {
        let values = captured.examples * height * columns;
        if scratch.size()[0] < values {
            *scratch = Tensor::zeros([values], (scratch.kind(), scratch.device()));
        }
        let shape = [captured.examples, height, columns];
        let mut formed = scratch.narrow(0, 0, values).view(shape);
        block.form_stripe(captured, first, &mut formed);
        formed.square_().sum_dim_intlist(0, false, None)
    };
    let stripes: Vec<Tensor> = block.stripes().into_iter().map(of_stripe).collect();
    Tensor::cat(&stripes, 0)
}

/// The losses whose gradients are to be taken, `[examples]` each; every one already carries the
/// root of its probability.
///
/// Where labels are drawn, positions are independent of each other, and each comes with the *root*
/// of its share `w_t` in the example's loss: `E[(Σ_t √w_t g_t)(…)ᵀ] = Σ_t w_t E[g_t g_tᵀ]` is the
/// Fisher and Gauss-Newton matrix of the weighted loss; the square of the loss's own gradient would
/// have `w_t²`, too little by the length of the answer.
fn losses_of(outputs: &Outputs, labels: Labels, rng: &mut ChaCha8Rng) -> Vec<Tensor> {
    match labels {
        Labels::Given => vec![outputs.losses()],
        Labels::Sampled { draws, .. } => {
            let root = f64::from(draws.max(1)).sqrt();
            let drawn = (0..draws.max(1)).map(|_| {
                let mut draw = |kind| match kind {
                    Draw::Uniform => rng.random::<f64>(),
                    Draw::Normal => StandardNormal.sample(rng),
                };
                let mut drawn = outputs.sampled(&mut draw);
                drawn.weights = drawn.weights.sqrt();
                drawn.losses() / root
            });
            drawn.collect()
        }
        Labels::Expected => expected_losses(outputs),
    }
}

fn expected_losses(outputs: &Outputs) -> Vec<Tensor> {
    let choices = outputs.predictions.size()[1];
    let size = outputs.weights.size();
    let mut losses = Vec::new();
    for position in 0..size[1] {
        let here = Tensor::zeros_like(&outputs.weights);
        here.select(1, position)
            .copy_(&outputs.weights.select(1, position));
        for choice in 0..choices {
            let column = outputs.predictions.select(1, choice).view_as(&here);
            let per_position = match outputs.targets {
                Targets::Values(_) => column,
                Targets::Classes(_) => {
                    let log = outputs.predictions.log_softmax(-1, None);
                    let log = log.select(1, choice).view_as(&here);
                    -(&log * (log.detach() * 0.5).exp())
                }
            };
            losses.push((per_position * here.sqrt()).sum_dim_intlist(1, false, None));
        }
    }
    losses
}

impl Covariances {
    /// Adds one draw of a batch: `u` and `v`, `[examples × positions × …]`; `v` is the same in
    /// all.
    fn add(&mut self, left: &Tensor, right: &Tensor, shares: &Tensor) {
        let pushed = left.abs().amax([2].as_slice(), true).gt(0.0);
        let pushed = pushed.to_kind(right.kind());
        self.batch = Some(match self.batch.take() {
            Some((right, counts)) => (right, counts.maximum(&pushed)),
            None => (right.shallow_clone(), pushed),
        });
        add_gram(&(left * shares.sqrt().view([-1, 1, 1])), &self.rows);
    }

    /// Adds the inputs of a batch after its last draw; positions without a gradient in any draw
    /// are padding and do not count.
    fn close(&mut self, shares: &Tensor) {
        let Some((right, counts)) = self.batch.take() else {
            return;
        };
        let shares = shares.view([-1, 1, 1]);
        let counted = &counts * &shares;
        self.positions += counted.sum(Kind::Double).double_value(&[]);
        add_gram(&(right * counts * shares.sqrt()), &self.columns);
    }

    /// K-FAC's eigenvalues in the basis of the sides' eigenvectors: `T E[Σ d dᵀ] ⊗ E[a aᵀ]` over `T`
    /// positions is `E[Σ_t d dᵀ] ⊗` the mean of `a aᵀ` over positions.
    fn factors(self, block: Block, rows: Eigen, columns: Eigen) -> BlockFactors {
        let column_values = columns.values / self.positions.max(f64::MIN_POSITIVE);
        BlockFactors {
            eigenvalues: rows.values.outer(&column_values),
            basis: Some((rows.vectors, columns.vectors)),
            block,
        }
    }
}

/// Eigenvalues and eigenvectors of a symmetric matrix.
struct Eigen {
    values: Tensor,
    vectors: Tensor,
}

/// Eigenvalues and vectors of symmetric matrices, given by their lower triangles and the names of
/// their layers. On a processor as many at a time as there are threads: one alone hardly gains by
/// several.
fn eigen_of_all(matrices: Vec<(Tensor, &str)>, threads: usize) -> Result<Vec<Eigen>, FactorsError> {
    let is_on_processor = matrices.iter().all(|(m, _)| m.device() == Device::Cpu);
    if !is_on_processor || threads == 1 {
        return matrices.iter().map(|(m, layer)| eigh(m, layer)).collect();
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(|_| tch::set_num_threads(1))
        .build()
        .expect("threads can be started");
    let all = matrices.into_par_iter();
    let found = pool.install(|| all.map(|(m, layer)| eigh(&m, layer)).collect());
    // What a thread sets counts for those that start later, too.
    tch::set_num_threads(threads as i32);
    found
}

/// Stripes in which the lower triangle of a symmetric product is computed: with 4 of them 3/8 of
/// the multiplications are saved.
const STRIPES: i64 = 4;

/// Adds the lower triangle of `Σ x xᵀ` over the positions of `[examples × positions × features]`.
fn add_gram(values: &Tensor, sum: &Tensor) {
    let size = *values.size().last().expect("features");
    let rows = values.reshape([-1, size]);
    let stripe = (size + STRIPES - 1) / STRIPES;
    for first in (0..size).step_by(stripe as usize) {
        let width = stripe.min(size - first);
        let below = rows.narrow(1, first, size - first);
        let mut part = sum.narrow(0, first, size - first).narrow(1, first, width);
        let _ = part.addmm_(&below.transpose(0, 1), &rows.narrow(1, first, width));
    }
}

/// Eigenvalues and vectors of the symmetric matrix with this lower triangle.
fn eigh(matrix: &Tensor, layer: &str) -> Result<Eigen, FactorsError> {
    if matrix.isfinite().all().int64_value(&[]) == 0 {
        return Err(FactorsError::NotFinite {
            layer: layer.to_owned(),
        });
    }
    let (values, vectors) = matrix.to_kind(Kind::Double).linalg_eigh("L");
    let kind = matrix.kind();
    Ok(Eigen {
        values: values.clamp_min(0.0).to_kind(kind),
        vectors: vectors.to_kind(kind),
    })
}

/// Why curvature cannot be factored or inverted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FactorsError {
    /// The examples or their weights.
    #[error(transparent)]
    Gradients(#[from] GradientError),
    /// Gradients that are NaN or infinite.
    #[error("the gradients of layer {layer} are not finite; has the reference run diverged?")]
    NotFinite {
        /// Name of the layer.
        layer: String,
    },
    /// A damping that cannot be used.
    #[error("the damping is {got}; it must be positive and finite")]
    Damping {
        /// What was given.
        got: f64,
    },
    /// A block without curvature and a damping relative to it.
    #[error(
        "layer {layer} has the mean eigenvalue {mean}, so that a damping relative to it means nothing; give an absolute damping"
    )]
    NoCurvature {
        /// Name of the layer.
        layer: String,
        /// Its mean eigenvalue.
        mean: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Network;
    use crate::torch::curvature::{Curvature, CurvatureKind};
    use crate::torch::gradients::per_example_gradients;
    use crate::torch::mlp::{Activation, DenseExample, Mlp, Prediction, Target};
    use crate::torch::test_support::{all_weights, dense, examples, examples_of, weights};
    use simfluence_core::NoProgress;
    use tch::Device;

    const DAMPING: Damping = Damping::Absolute(0.03);

    fn shares(count: usize) -> Vec<f64> {
        let raw: Vec<f64> = (0..count).map(|k| 1.0 + (k % 3) as f64).collect();
        let total: f64 = raw.iter().sum();
        raw.iter().map(|w| 0.7 * w / total).collect()
    }

    fn fit<M: Model>(
        model: &M,
        examples: &[M::Example],
        kind: FactorKind,
        labels: Labels,
    ) -> Factors {
        let settings = GradientSettings {
            batch_size: 4,
            ..GradientSettings::default()
        };
        let shares = shares(examples.len());
        fit_factors(
            model,
            examples,
            &shares,
            kind,
            labels,
            &settings,
            &NoProgress,
        )
        .unwrap()
    }

    /// Probability of each class of each example.
    fn probabilities(model: &Mlp, train: &[DenseExample]) -> Tensor {
        let batch = model.batch(&train.iter().collect::<Vec<_>>());
        tch::no_grad(|| model.outputs(&batch, None).predictions.softmax(-1, None))
    }

    /// All gradients with their weights `share · probability`, over every class.
    fn gradients_of_all_classes(model: &Mlp, train: &[DenseExample]) -> Vec<(f64, Tensor)> {
        let p = probabilities(model, train);
        let shares = shares(train.len());
        let mut all = Vec::new();
        for class in 0..3 {
            let relabelled: Vec<DenseExample> = train
                .iter()
                .map(|e| DenseExample {
                    features: e.features.clone(),
                    target: Target::Class(class),
                })
                .collect();
            let rows = per_example_gradients(model, &relabelled).unwrap();
            for (k, share) in shares.iter().enumerate() {
                let probability = p.double_value(&[k as i64, i64::from(class)]);
                all.push((share * probability, rows.get(k as i64)));
            }
        }
        all
    }

    /// A block's gradient as `[rows × columns]`, the bias as its last column.
    fn block_of(gradient: &Tensor, layer: usize, model: &Mlp) -> Tensor {
        let specs = model.layout().specs();
        let (weight, bias) = (&specs[2 * layer], &specs[2 * layer + 1]);
        let (rows, columns) = (weight.shape[0] as i64, weight.shape[1] as i64);
        let part = |offset: usize, length: i64| gradient.narrow(0, offset as i64, length);
        let matrix = part(weight.offset, rows * columns).view([rows, columns]);
        Tensor::cat(&[matrix, part(bias.offset, rows).unsqueeze(1)], 1)
    }

    /// Solves with the definition of each kind, written out densely, and compares.
    fn check_definition(kind: FactorKind) {
        let (model, train, test) = dense(Prediction::Classes);
        let all = gradients_of_all_classes(&model, &train);
        let vector = per_example_gradients(&model, &test[..1]).unwrap();
        let got = fit(&model, &train, kind, Labels::Expected).solve(&vector, DAMPING);
        let got = got.unwrap().get(0);
        for layer in 0..2 {
            let blocks: Vec<(f64, Tensor)> = (all.iter())
                .map(|(weight, gradient)| (*weight, block_of(gradient, layer, &model)))
                .collect();
            let (rows, columns) = blocks[0].1.size2().unwrap();
            let curvature = match kind {
                FactorKind::Diagonal => {
                    let terms = blocks.iter().map(|(w, g)| g.square().view([-1]) * *w);
                    terms.reduce(|a, b| a + b).unwrap().diag(0)
                }
                FactorKind::Kfac | FactorKind::Ekfac => {
                    let (a, s) = covariances(&model, &train, layer, &blocks);
                    if kind == FactorKind::Kfac {
                        s.kron(&a) * 0.7
                    } else {
                        let (_, q_a) = a.linalg_eigh("L");
                        let (_, q_s) = s.linalg_eigh("L");
                        let basis = q_s.kron(&q_a);
                        let rotated =
                            |g: &Tensor| q_s.transpose(0, 1).matmul(g).matmul(&q_a).square();
                        let terms = blocks.iter().map(|(w, g)| rotated(g).view([-1]) * *w);
                        let values = terms.reduce(|a, b| a + b).unwrap();
                        basis.matmul(&values.diag(0)).matmul(&basis.transpose(0, 1))
                    }
                }
            };
            let damped =
                curvature + Tensor::eye(rows * columns, (Kind::Double, Device::Cpu)) * 0.03;
            let right = block_of(&vector.get(0), layer, &model).view([-1]);
            let expected = damped.inverse().mv(&right);
            let own = block_of(&got, layer, &model).view([-1]);
            let scale = expected.abs().max().double_value(&[]);
            let worst = (own - expected).abs().max().double_value(&[]) / scale;
            assert!(worst < 1e-9, "{kind:?} layer {layer}: {worst}");
        }
    }

    /// `E[a aᵀ]` and `E[d dᵀ]`; with one position the gradient is `d aᵀ` and its last column `d`.
    fn covariances(
        model: &Mlp,
        train: &[DenseExample],
        layer: usize,
        blocks: &[(f64, Tensor)],
    ) -> (Tensor, Tensor) {
        let last = blocks[0].1.size2().unwrap().1 - 1;
        let s = blocks.iter().map(|(w, g)| {
            let d = g.select(1, last);
            d.outer(&d) * (*w / 0.7)
        });
        let mut a = Tensor::zeros([last + 1, last + 1], (Kind::Double, Device::Cpu));
        for (example, share) in train.iter().zip(shares(train.len())) {
            let mut input = example.features.clone();
            if layer == 1 {
                let values = Tensor::from_slice(&input);
                let weights = model.parameters()[0].detach();
                let hidden = (weights.mv(&values) + model.parameters()[1].detach()).tanh();
                input = Vec::<f64>::try_from(hidden).unwrap();
            }
            input.push(1.0);
            let input = Tensor::from_slice(&input);
            a += input.outer(&input) * (share / 0.7);
        }
        (a, s.reduce(|a, b| a + b).unwrap())
    }

    #[test]
    fn ref_each_kind_is_its_definition_with_the_expectation_over_labels_taken_exactly() {
        for kind in [FactorKind::Diagonal, FactorKind::Kfac, FactorKind::Ekfac] {
            check_definition(kind);
        }
    }

    /// The curvature of linear regression is `I ⊗ E[x xᵀ]`: both Kronecker kinds are exact.
    #[test]
    fn ref_kronecker_factors_are_exact_where_the_curvature_is_factored() {
        let (_, train, _) = dense(Prediction::Values);
        let values: Vec<f64> = (0..15).map(|k| f64::from(k).cos()).collect();
        let model = Mlp::new(
            &[4, 3],
            Activation::Relu,
            Prediction::Values,
            &values,
            Kind::Double,
            Device::Cpu,
        );
        let model = model.unwrap();
        let vector = per_example_gradients(&model, &train[..3]).unwrap();
        let curvature = Curvature::new(
            &model,
            &train,
            &shares(train.len()),
            CurvatureKind::Hessian,
            &GradientSettings::default(),
        )
        .unwrap();
        for kind in [FactorKind::Kfac, FactorKind::Ekfac] {
            let factors = fit(&model, &train, kind, Labels::Expected);
            let solved = factors.solve(&vector, DAMPING).unwrap();
            let back = curvature.times(&solved) + &solved * 0.03;
            let worst = (back - &vector).abs().max().double_value(&[]);
            assert!(worst < 1e-10, "{kind:?}: {worst}");
        }
    }

    #[test]
    fn ref_the_diagonal_of_sequences_is_that_of_the_gauss_newton_matrix() {
        let model = Network::with_kind(&weights(true), Device::Cpu, Kind::Double);
        let train = examples(6, 0);
        let answers = train.iter().map(|e| e.target_count());
        assert!(answers.collect::<std::collections::BTreeSet<_>>().len() > 1);
        let shares = shares(6);
        let settings = GradientSettings::default();
        let kind = CurvatureKind::GaussNewton;
        let curvature = Curvature::new(&model, &train, &shares, kind, &settings).unwrap();
        let length = model.layout().flat_len() as i64;
        let unit = Tensor::eye(length, (Kind::Double, Device::Cpu));
        let diagonal = curvature.times(&unit).diagonal(0, 0, 1).unsqueeze(0);
        let factors = fit(&model, &train, FactorKind::Diagonal, Labels::Expected);
        for factors in &factors.blocks {
            let expected = factors.block.cut(&diagonal).select(0, 0);
            let expected = expected.view_as(&factors.eigenvalues);
            let worst = (&expected - &factors.eigenvalues).abs().max();
            let largest = expected.abs().max().double_value(&[]);
            assert!(
                worst.double_value(&[]) < 1e-9 * largest,
                "{}",
                factors.block.layer
            );
        }
    }

    #[test]
    fn drawn_labels_approach_the_expectation() {
        let (model, train, test) = dense(Prediction::Classes);
        let vector = per_example_gradients(&model, &test).unwrap();
        let solve = |labels| {
            let factors = fit(&model, &train, FactorKind::Ekfac, labels);
            factors.solve(&vector, Damping::Relative(0.1)).unwrap()
        };
        let exact = solve(Labels::Expected);
        let error = |draws| {
            let drawn = solve(Labels::Sampled { seed: 7, draws });
            ((drawn - &exact).norm() / exact.norm()).double_value(&[])
        };
        let (few, many) = (error(4), error(2_000));
        assert!(many < 0.05 && many < 0.3 * few, "{few} {many}");
        assert_ne!(solve(Labels::Given), exact);
    }

    /// In the eigenbasis the diagonal is the second moment of the gradients, also of models
    /// whose examples have several positions and padding.
    #[test]
    fn ref_eigenvalues_sum_to_the_mean_square_of_its_gradients() {
        for weights in all_weights() {
            let model = Network::with_kind(&weights, Device::Cpu, Kind::Double);
            let train = examples_of(&weights, 9, 2);
            let rows = per_example_gradients(&model, &train).unwrap();
            let squares = rows.square().sum_dim_intlist(1, false, None);
            let expected = squares
                .dot(&Tensor::from_slice(&shares(9)))
                .double_value(&[]);
            for kind in [FactorKind::Ekfac, FactorKind::Diagonal] {
                let factors = fit(&model, &train, kind, Labels::Given);
                let got: f64 = (factors.blocks.iter())
                    .map(|f| f.eigenvalues.sum(Kind::Double).double_value(&[]))
                    .sum();
                assert!((got / expected - 1.0).abs() < 1e-10, "{got} {expected}");
            }
            // Padding must not change the factors.
            let kfac = |batch_size| {
                let settings = GradientSettings {
                    batch_size,
                    ..GradientSettings::default()
                };
                let (kind, shares) = (FactorKind::Kfac, shares(9));
                let given = Labels::Given;
                fit_factors(&model, &train, &shares, kind, given, &settings, &NoProgress).unwrap()
            };
            let solve = |factors: Factors| factors.solve(&rows, Damping::Relative(0.1)).unwrap();
            let (alone, together) = (solve(kfac(1)), solve(kfac(9)));
            let difference = ((&alone - together).norm() / alone.norm()).double_value(&[]);
            assert!(difference < 1e-10, "{difference}");
        }
    }

    #[test]
    fn what_is_kept_of_the_first_pass_saves_gradients_and_changes_nothing() {
        let model = Network::with_kind(&weights(true), Device::Cpu, Kind::Double);
        let train = examples(20, 0);
        let by_length = by_length(&model, &train);
        let longest = model.batch(&[&train[by_length[0]]]);
        let bytes = Captured::new(&model, &longest, Outputs::losses).bytes();
        // A batch holds two examples in each; all are kept, or some.
        let of = |memory: usize, kind, labels| {
            let settings = GradientSettings {
                batch_size: 2,
                memory,
                ..GradientSettings::default()
            };
            let all = shares(20);
            fit_factors(&model, &train, &all, kind, labels, &settings, &NoProgress).unwrap()
        };
        let labels = Labels::Sampled { seed: 3, draws: 2 };
        let [all, some] = [1 << 30, 30 * bytes].map(|memory| of(memory, FactorKind::Ekfac, labels));
        assert_eq!(all.gradient_evaluations(), 40);
        let evaluations = some.gradient_evaluations();
        assert!((41..80).contains(&evaluations), "{evaluations}");
        for (a, b) in all.blocks.iter().zip(&some.blocks) {
            assert_eq!(a.eigenvalues, b.eigenvalues);
        }
    }

    #[test]
    fn damping_that_cannot_be_is_refused() {
        let (model, train, _) = dense(Prediction::Classes);
        let factors = fit(&model, &train, FactorKind::Kfac, Labels::Given);
        for damping in [Damping::Absolute(0.0), Damping::Relative(f64::NAN)] {
            let error = factors.inverse(damping).unwrap_err();
            assert!(matches!(error, FactorsError::Damping { .. }));
        }
        let mut dead = model.flat().shallow_clone();
        let _ = dead.fill_(0.0);
        // All weights 0: nothing reaches the first layer.
        let factors = fit(&model, &train, FactorKind::Ekfac, Labels::Given);
        let message = factors
            .inverse(Damping::Relative(0.1))
            .unwrap_err()
            .to_string();
        assert!(message.contains("layers.0"), "{message}");
    }
}
