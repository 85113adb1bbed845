//! Inner products of training and test gradients, block by block in bounded memory.
//!
//! Every example goes through the model once per chunk that memory allows; what is kept of it are
//! the inputs and output gradients of the layers, not its gradient. For each block of parameters
//! the engine then picks what is cheaper: forming the gradients and one matrix product, or
//! multiplying inputs with inputs and output gradients with output gradients.

use super::blocks::{Block, Captured, blocks};
use super::low_rank::low_rank_piece;
use super::projection::Sketch;
use super::sides::{Side, slices, value_bytes};
use super::tape::Piece;
use super::{GradientError, GradientSettings};
use crate::approximation::Approximation;
use crate::torch::model::{Model, check_all};
use crate::torch::parameters::to_vec;
use simfluence_core::Progress;
use tch::{Device, Kind, Tensor};

/// What inner products are taken in: `g_iᵀ M⁻¹ g_j`.
#[derive(Debug)]
pub enum Metric {
    /// `M = I`.
    Identity,
    /// `M⁻¹` is diagonal; its diagonal, laid out as [`Model::flat`].
    Diagonal(Tensor),
    /// Block by block, each in a basis of its own.
    Blocks(Vec<BlockMetric>),
}

/// The inverse metric of one block: rotate, weigh, rotate back.
#[derive(Debug)]
pub struct BlockMetric {
    /// Orthogonal matrices of the rows and of the columns; `None`: the block's own axes.
    pub(in crate::torch) rotation: Option<(Tensor, Tensor)>,
    /// `[rows × columns]`, in the rotated basis.
    pub(in crate::torch) weights: Tensor,
}

/// What is computed besides the inner products of whole examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The inner products of every layer on its own; they sum to the whole ones.
    pub layers: bool,
    /// The norms of the gradients, `√(gᵀ M⁻¹ g)`.
    pub norms: bool,
    /// A row for every target of every training example instead of one per example: the gradient
    /// of the target's own loss times its share of the example's loss. The rows of an example sum
    /// to the example's own.
    pub train_targets: bool,
    /// The same for columns and test examples.
    pub test_targets: bool,
}

/// Inner products `g_iᵀ M⁻¹ g_j` of the gradients of training and test losses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InnerProducts {
    /// `[rows × columns]`, row-major: training × test examples, or their targets in the order of
    /// the examples where wanted.
    pub products: Vec<f32>,
    /// Name and `[rows × columns]` products of each layer, where wanted.
    pub layers: Vec<(String, Vec<f32>)>,
    /// `√(g_iᵀ M⁻¹ g_i)` of the rows, where wanted.
    pub train_norms: Vec<f32>,
    /// `√(g_jᵀ M⁻¹ g_j)` of the columns, where wanted.
    pub test_norms: Vec<f32>,
    /// Gradients evaluated: examples that went through the model, forward and backward; once per
    /// target where those are wanted.
    pub gradient_evaluations: u64,
}

/// Inner products of every training with every test gradient in bounded memory.
///
/// Progress is counted in examples that went through the model.
///
/// # Errors
/// An example that the model cannot read; an approximation of 0 dimensions.
pub fn inner_products<M: Model>(
    model: &M,
    train: &[M::Example],
    test: &[M::Example],
    metric: &Metric,
    wanted: Wanted,
    settings: &GradientSettings,
    progress: &dyn Progress,
) -> Result<InnerProducts, GradientError> {
    check_all(model, train)
        .map_err(|(example, problem)| GradientError::TrainExample { example, problem })?;
    check_all(model, test)
        .map_err(|(example, problem)| GradientError::TestExample { example, problem })?;
    check_approximation(settings.approximation, wanted)?;
    let train = Side::new(model, train, wanted.train_targets);
    let test = Side::new(model, test, wanted.test_targets);
    let mut engine = Engine::new(model, metric, wanted, settings, train.count, test.count);
    engine.learn_blocks(&train, Some(&test));
    let sketch = match settings.approximation {
        Approximation::Projection { dimensions, seed } => {
            Some(Sketch::new(&engine.blocks, dimensions, seed, model))
        }
        _ => None,
    };
    let at_once = engine.tests_at_once(&test);
    let rounds = test.order.len().div_ceil(at_once.max(1));
    progress.begin(
        "gradients",
        (test.order.len() + rounds * train.order.len()) as u64,
    );
    for chunk in test.order.chunks(at_once) {
        let (queries, columns) = engine.queries(&test, chunk, sketch.as_ref(), progress);
        engine.against(&queries, &columns, &train, sketch.as_ref(), progress);
    }
    progress.end();
    Ok(engine.result)
}

/// Inner products `g_i · v_q` of every training gradient with some vectors `[vectors × flat
/// length]`, as [`inner_products`]; the vectors take the place of the test examples and are not
/// approximated.
///
/// # Errors
/// An example that the model cannot read.
pub fn products_with_vectors<M: Model>(
    model: &M,
    train: &[M::Example],
    vectors: &Tensor,
    wanted: Wanted,
    settings: &GradientSettings,
    progress: &dyn Progress,
) -> Result<InnerProducts, GradientError> {
    check_all(model, train)
        .map_err(|(example, problem)| GradientError::TrainExample { example, problem })?;
    let count = vectors.size()[0] as usize;
    let train = Side::new(model, train, wanted.train_targets);
    let metric = &Metric::Identity;
    let mut engine = Engine::new(model, metric, wanted, settings, train.count, count);
    engine.learn_blocks(&train, None);
    progress.begin("gradients", train.order.len() as u64);
    let columns: Vec<Option<usize>> = (0..count).map(Some).collect();
    engine.against(&Queries::Vectors(vectors), &columns, &train, None, progress);
    progress.end();
    Ok(engine.result)
}

/// Fails on a rank or dimension of 0, and where layers are wanted of a projection, which mixes them.
fn check_approximation(approximation: Approximation, wanted: Wanted) -> Result<(), GradientError> {
    let problem = match approximation {
        Approximation::LowRank { rank: 0, .. } => {
            "the rank of test gradients is 0; it must be at least 1"
        }
        Approximation::Projection { dimensions: 0, .. } => {
            "the projection has 0 dimensions; it must have at least 1"
        }
        Approximation::Projection { .. } if wanted.layers => {
            "a projection mixes the layers, so that there are no scores by layer; leave one of the two out"
        }
        _ => return Ok(()),
    };
    Err(GradientError::Approximation { problem })
}

/// Share of the memory for the test examples' captured layers, for the training examples', for the
/// formed gradients of a block of test and of training examples, and for one pass of a batch
/// through the model.
const SHARES: [f64; 5] = [0.22, 0.50, 0.04, 0.10, 0.14];

/// What a pass holds besides the captured layers, in units of those.
const GRAPH: usize = 2;

/// Training examples whose gradients of a block are formed for one matrix product.
const PRODUCT_ROWS: usize = 512;

/// Bytes of captured layers up to which batches of small examples grow.
const SMALL_BATCH: usize = 8 << 20;

/// The other side of the training examples.
enum Queries<'a> {
    /// Test examples; `reduced`: of low rank, in the inverse metric and in the model's own axes.
    Examples {
        captured: Vec<Captured>,
        reduced: bool,
    },
    Vectors(&'a Tensor),
    /// `[queries × dimensions]`.
    Projected(Tensor),
}

struct Engine<'a, M: Model> {
    model: &'a M,
    metric: &'a Metric,
    wanted: Wanted,
    settings: &'a GradientSettings,
    blocks: Vec<Block>,
    /// Bytes that one captured row of each side takes: test, training.
    bytes: [usize; 2],
    columns: usize,
    result: InnerProducts,
    /// Memory for formed blocks of test and of training examples, used again and again: fresh
    /// memory costs more in page faults than the products themselves.
    scratch: [Tensor; 2],
}

impl<'a, M: Model> Engine<'a, M> {
    fn new(
        model: &'a M,
        metric: &'a Metric,
        wanted: Wanted,
        settings: &'a GradientSettings,
        rows: usize,
        columns: usize,
    ) -> Self {
        tch::set_num_threads(settings.threads.max(1) as i32);
        let norms = |count| vec![0.0; if wanted.norms { count } else { 0 }];
        let empty = || Tensor::zeros([0], (model.kind(), model.device()));
        Self {
            model,
            metric,
            wanted,
            settings,
            blocks: Vec::new(),
            bytes: [1, 1],
            columns,
            result: InnerProducts {
                products: vec![0.0; rows * columns],
                train_norms: norms(rows),
                test_norms: norms(columns),
                ..InnerProducts::default()
            },
            scratch: [empty(), empty()],
        }
    }

    /// Learns the blocks and what an example takes from the longest ones.
    fn learn_blocks(&mut self, train: &Side<'_, M>, test: Option<&Side<'_, M>>) {
        for (k, side) in [test, Some(train)].into_iter().enumerate() {
            if let Some(captured) = side.and_then(Side::longest) {
                self.bytes[k] = captured.bytes().max(1);
                if self.blocks.is_empty() {
                    self.blocks = blocks(self.model.layout(), &captured);
                }
            }
        }
        if self.wanted.layers {
            for block in &self.blocks {
                let known = &mut self.result.layers;
                if !known.iter().any(|(name, _)| *name == block.layer) {
                    let values = vec![0.0; self.result.products.len()];
                    known.push((block.layer.clone(), values));
                }
            }
        }
    }

    fn memory(&self, share: usize) -> f64 {
        self.settings.memory as f64 * SHARES[share]
    }

    /// Examples per pass of a side whose rows take so many bytes: more than usual if they are
    /// small, fewer if memory is short.
    fn batch_size(&self, bytes_each: usize) -> usize {
        let usual = (SMALL_BATCH / bytes_each).max(self.settings.batch_size);
        let fits = (self.memory(4) / (GRAPH * bytes_each) as f64) as usize;
        usual.min(fits).max(1)
    }

    /// Examples that take at most a share of the memory, at least one.
    fn examples_within(&self, share: usize, bytes_each: usize) -> usize {
        ((self.memory(share) / bytes_each.max(1) as f64) as usize).max(1)
    }

    fn largest_block(&self) -> usize {
        let values = self.blocks.iter().map(|b| b.len()).max().unwrap_or(1);
        values as usize * value_bytes(self.model.kind())
    }

    /// Test examples against which the training examples are taken at once, all of about the same
    /// number.
    fn tests_at_once(&self, test: &Side<'_, M>) -> usize {
        let value = value_bytes(self.model.kind());
        let each = match self.settings.approximation {
            Approximation::Exact => self.bytes[0],
            Approximation::LowRank { rank, .. } => {
                let values = |b: &Block| b.low_rank_len(rank as i64) as usize;
                self.blocks.iter().map(values).sum::<usize>() * value
            }
            Approximation::Projection { dimensions, .. } => dimensions * value,
        };
        let most = self.examples_within(0, each * test.most);
        let rounds = test.order.len().div_ceil(most).max(1);
        test.order.len().div_ceil(rounds).max(1)
    }

    /// Runs one batch through the model; gives its rows' norms where wanted.
    fn capture(
        &mut self,
        side: &Side<'_, M>,
        ids: &[usize],
        progress: &dyn Progress,
    ) -> (Vec<Captured>, Vec<Option<usize>>, Vec<f32>) {
        let (captured, places) = side.capture(ids);
        self.result.gradient_evaluations += (captured.len() * ids.len()) as u64;
        progress.advance(ids.len() as u64);
        let norms = match self.wanted.norms {
            true => {
                let all = |c: &Captured| self.rotated(c.narrow(0, c.examples));
                let rotated: Vec<Captured> = captured.iter().map(all).collect();
                self.norms(&rotated)
            }
            false => Vec::new(),
        };
        (captured, places, norms)
    }

    fn rotated(&self, captured: Captured) -> Captured {
        match self.metric {
            Metric::Blocks(metrics) => {
                let rotations = metrics.iter().map(|m| m.rotation.as_ref());
                captured.rotated(&self.blocks, rotations)
            }
            Metric::Identity | Metric::Diagonal(_) => captured,
        }
    }

    /// Test examples as the training examples meet them, and their places in the result.
    fn queries(
        &mut self,
        test: &Side<'_, M>,
        ids: &[usize],
        sketch: Option<&Sketch>,
        progress: &dyn Progress,
    ) -> (Queries<'static>, Vec<Option<usize>>) {
        let mut columns = Vec::new();
        let (mut all, mut projected) = (Vec::new(), Vec::new());
        for ids in ids.chunks(self.batch_size(self.bytes[0] * test.most)) {
            let (captured, places, norms) = self.capture(test, ids, progress);
            scatter(&norms, &places, &mut self.result.test_norms);
            columns.extend(places);
            for captured in captured {
                let captured = self.rotated(captured);
                match (self.settings.approximation, sketch) {
                    (Approximation::LowRank { rank, seed }, _) => {
                        all.push(self.reduced(&captured, rank, seed));
                    }
                    (_, Some(sketch)) => projected.push(self.projected(&[captured], sketch)),
                    _ => all.push(captured),
                }
            }
        }
        let queries = match (sketch, self.settings.approximation) {
            (Some(_), _) => Queries::Projected(Tensor::cat(&projected, 0)),
            (None, approximation) => Queries::Examples {
                captured: all,
                reduced: matches!(approximation, Approximation::LowRank { .. }),
            },
        };
        (queries, columns)
    }

    /// Captured (and rotated) test examples with matrices of low rank, in the inverse metric.
    fn reduced(&mut self, captured: &Captured, rank: usize, seed: u64) -> Captured {
        let at_once = self.examples_within(2, self.largest_block());
        let mut pieces = Vec::new();
        for (index, block) in self.blocks.clone().iter().enumerate() {
            let rotation = match self.metric {
                Metric::Blocks(metrics) => metrics[index].rotation.as_ref(),
                Metric::Identity | Metric::Diagonal(_) => None,
            };
            let mut parts = Vec::new();
            for slice in slices(std::slice::from_ref(captured), at_once) {
                let formed = self.form_all(0, block, &slice);
                let formed = self.weigh(index, block, formed);
                parts.push(match block.is_matrix {
                    true => low_rank_piece(block, &formed, rank, seed, index as u64, rotation),
                    false => Piece::Formed {
                        parameter: 0,
                        first: 0,
                        rows: formed.view([-1, block.len()]).copy(),
                    },
                });
            }
            pieces.push(Piece::cat(parts));
        }
        Captured::of_pieces(pieces, captured.examples)
    }

    /// Projections of captured (and rotated) examples in the root of the inverse metric.
    fn projected(&mut self, captured: &[Captured], sketch: &Sketch) -> Tensor {
        let mut rows = Vec::new();
        for slice in slices(captured, self.whole_rows()) {
            let examples = slice.iter().map(|c| c.examples).sum();
            let sums = sketch.start(examples, self.model.flat());
            for (index, block) in self.blocks.clone().iter().enumerate() {
                let formed = self.form_all(1, block, &slice);
                let mut formed = match self.inverse(index, block) {
                    Some(inverse) => formed.shallow_clone().g_mul_(&inverse.sqrt()),
                    None => formed,
                }
                .view([-1, block.len()]);
                sketch.add(index, &mut formed, &sums);
            }
            rows.push(sketch.finish(&sums));
        }
        Tensor::cat(&rows, 0)
    }

    /// All training examples against some queries, whose places in the result are `columns`.
    fn against(
        &mut self,
        queries: &Queries,
        columns: &[Option<usize>],
        train: &Side<'_, M>,
        sketch: Option<&Sketch>,
        progress: &dyn Progress,
    ) {
        let each = self.bytes[1] * train.most;
        let batch = self.batch_size(each);
        let at_once = match sketch {
            Some(_) => batch,
            None => self.examples_within(1, each).max(batch),
        };
        let rounds = train.order.len().div_ceil(at_once).max(1);
        for ids in train
            .order
            .chunks(train.order.len().div_ceil(rounds).max(1))
        {
            let (mut all, mut rows) = (Vec::new(), Vec::new());
            for ids in ids.chunks(batch) {
                let (captured, places, norms) = self.capture(train, ids, progress);
                scatter(&norms, &places, &mut self.result.train_norms);
                rows.extend(places);
                for captured in captured {
                    all.push(match queries {
                        Queries::Examples { reduced: true, .. } => captured,
                        _ => self.rotated(captured),
                    });
                }
            }
            if let (Queries::Projected(queries), Some(sketch)) = (queries, sketch) {
                let products = self
                    .projected(&all, sketch)
                    .matmul(&queries.transpose(0, 1));
                self.add(None, &products, &rows, columns);
                continue;
            }
            for index in 0..self.blocks.len() {
                let products = self.block_products(index, &all, queries, columns.len());
                self.add(Some(index), &products, &rows, columns);
            }
        }
    }

    /// Adds the products of a block, or of all, to the result.
    fn add(
        &mut self,
        block: Option<usize>,
        products: &Tensor,
        rows: &[Option<usize>],
        columns: &[Option<usize>],
    ) {
        let values = to_vec(products);
        let width = self.columns;
        let layer = match block {
            Some(block) if self.wanted.layers => {
                let name = &self.blocks[block].layer;
                let layer = self.result.layers.iter_mut().find(|(n, _)| n == name);
                Some(&mut layer.expect("every block's layer has a place").1)
            }
            _ => None,
        };
        for target in [Some(&mut self.result.products), layer]
            .into_iter()
            .flatten()
        {
            for (row, place) in values.chunks_exact(columns.len().max(1)).zip(rows) {
                let Some(i) = place else { continue };
                let target = &mut target[i * width..][..width];
                for (&value, column) in row.iter().zip(columns) {
                    if let Some(j) = column {
                        target[*j] += value;
                    }
                }
            }
        }
    }

    /// `[training rows × queries]` of one block.
    fn block_products(
        &mut self,
        index: usize,
        train: &[Captured],
        queries: &Queries,
        count: usize,
    ) -> Tensor {
        let block = self.blocks[index].clone();
        match queries {
            Queries::Examples { captured, reduced } => {
                let other = match reduced {
                    true => block.alone(index),
                    false => block.clone(),
                };
                let trains: i64 = train.iter().map(|c| c.examples).sum();
                let is_plain = *reduced || matches!(self.metric, Metric::Identity);
                let (first, second) = (&train[0], &captured[0]);
                if is_plain && block.prefers_direct(first, &other, second, trains as usize, count) {
                    return self.direct_products(&block, train, &other, captured);
                }
                let inverse = (!reduced).then(|| self.inverse(index, &block)).flatten();
                self.sum_over_stripes(&block, |engine, (first, height)| {
                    let at_once = engine.examples_within(2, engine.stripe_bytes(&block, height));
                    let parts = slices(captured, at_once).into_iter().map(|slice| {
                        let formed = engine.form_stripe(0, &other, (first, height), &slice);
                        let formed = match &inverse {
                            Some(inverse) => formed
                                .shallow_clone()
                                .g_mul_(&inverse.narrow(-2, first, height)),
                            None => formed,
                        };
                        engine.formed_products(&block, (first, height), train, &formed)
                    });
                    Tensor::cat(&parts.collect::<Vec<_>>(), 1)
                })
            }
            Queries::Vectors(vectors) if count == 1 => {
                let vector = block.cut(vectors).select(0, 0);
                let rows: Vec<Tensor> = train.iter().map(|c| block.along(c, &vector)).collect();
                Tensor::cat(&rows, 0).unsqueeze(1)
            }
            Queries::Vectors(vectors) => {
                let formed = block.as_formed(&block.cut(vectors));
                self.sum_over_stripes(&block, |engine, (first, height)| {
                    let formed = formed.narrow(1, first, height).contiguous();
                    engine.formed_products(&block, (first, height), train, &formed)
                })
            }
            Queries::Projected(_) => unreachable!("projections have no blocks"),
        }
    }

    /// Without forming gradients, in pieces whose pairs of positions fit into memory.
    fn direct_products(
        &self,
        block: &Block,
        train: &[Captured],
        other: &Block,
        test: &[Captured],
    ) -> Tensor {
        let positions = block.positions(&train[0]) * other.positions(&test[0]);
        let bytes = 3 * positions as usize * value_bytes(self.model.kind());
        let side = ((self.memory(3) / bytes as f64).sqrt() as usize).max(1);
        let tests = slices(test, side);
        let mut rows = Vec::new();
        for a in slices(train, side).iter().flatten() {
            let parts = tests.iter().flatten();
            let parts = parts.map(|b| block.direct_products(a, other, b));
            rows.push(Tensor::cat(&parts.collect::<Vec<_>>(), 1));
        }
        Tensor::cat(&rows, 0)
    }

    /// The sum of what the stripes of a block give.
    fn sum_over_stripes(
        &mut self,
        block: &Block,
        mut products: impl FnMut(&mut Self, (i64, i64)) -> Tensor,
    ) -> Tensor {
        let stripes = block.stripes().into_iter();
        let sum = stripes
            .map(|stripe| products(self, stripe))
            .reduce(|mut sum, products| {
                sum += products;
                sum
            });
        sum.expect("a block has rows")
    }

    /// With formed gradients of the queries, `[queries × rows of the stripe × formed columns]`.
    fn formed_products(
        &mut self,
        block: &Block,
        stripe: (i64, i64),
        train: &[Captured],
        queries: &Tensor,
    ) -> Tensor {
        let values = stripe.1 * block.formed_shape()[1];
        let queries = queries.view([-1, values]);
        let at_once = self.examples_within(3, self.stripe_bytes(block, stripe.1));
        let mut rows = Vec::new();
        for slice in slices(train, at_once.min(PRODUCT_ROWS)) {
            let gradients = self.form_stripe(1, block, stripe, &slice);
            // In this order the product is faster.
            rows.push(queries.matmul(&gradients.view([-1, values]).transpose(0, 1)));
        }
        Tensor::cat(&rows, 1).transpose(0, 1)
    }

    /// Bytes of a stripe of one example's gradient.
    fn stripe_bytes(&self, block: &Block, height: i64) -> usize {
        (height * block.formed_shape()[1]) as usize * value_bytes(self.model.kind())
    }

    /// Examples whose whole gradients of a block are formed at once.
    fn whole_rows(&self) -> usize {
        (self.examples_within(3, self.largest_block())).min(PRODUCT_ROWS)
    }

    /// The block's gradients of all examples in one of the two buffers, `[examples × formed
    /// shape]`.
    fn form_all(&mut self, buffer: usize, block: &Block, captured: &[Captured]) -> Tensor {
        self.form_stripe(buffer, block, (0, block.formed_shape()[0]), captured)
    }

    /// A stripe of the same, `[examples × rows of the stripe × formed columns]`.
    fn form_stripe(
        &mut self,
        buffer: usize,
        block: &Block,
        (first_row, height): (i64, i64),
        captured: &[Captured],
    ) -> Tensor {
        let examples: i64 = captured.iter().map(|c| c.examples).sum();
        let columns = block.formed_shape()[1];
        let values = examples * height * columns;
        if self.scratch[buffer].size()[0] < values {
            let options = (self.model.kind(), self.model.device());
            self.scratch[buffer] = Tensor::zeros([0], options);
            self.scratch[buffer] = Tensor::zeros([values], options);
        }
        let shape = [examples, height, columns];
        let all = self.scratch[buffer].narrow(0, 0, values).view(shape);
        let mut first = 0;
        for captured in captured {
            let mut part = all.narrow(0, first, captured.examples);
            block.form_stripe(captured, first_row, &mut part);
            first += captured.examples;
        }
        all
    }

    /// The inverse metric of a block, in the shape of formed gradients; none: the identity.
    fn inverse(&self, index: usize, block: &Block) -> Option<Tensor> {
        match self.metric {
            Metric::Identity => None,
            Metric::Diagonal(diagonal) => Some(block.as_formed(&block.cut(&diagonal.unsqueeze(0)))),
            Metric::Blocks(metrics) => Some(block.as_formed(&metrics[index].weights).unsqueeze(0)),
        }
    }

    /// Formed gradients in the inverse metric.
    fn weigh(&self, index: usize, block: &Block, mut formed: Tensor) -> Tensor {
        match self.inverse(index, block) {
            None => formed,
            Some(inverse) => formed.g_mul_(&inverse),
        }
    }

    /// Norms of captured (and rotated) examples.
    fn norms(&mut self, captured: &[Captured]) -> Vec<f32> {
        let mut norms = Vec::new();
        for slice in slices(captured, self.whole_rows()) {
            let examples: i64 = slice.iter().map(|c| c.examples).sum();
            let mut squares = Tensor::zeros([examples], (Kind::Double, Device::Cpu));
            for (index, block) in self.blocks.clone().iter().enumerate() {
                let mut formed = self.form_all(1, block, &slice);
                let weighed = self.weigh(index, block, formed.square_());
                let own = weighed.view([-1, block.len()]);
                let own = own.sum_dim_intlist(1, false, Kind::Double);
                squares += own.to_device(Device::Cpu);
            }
            norms.extend(to_vec(&squares.sqrt()));
        }
        norms
    }
}

fn scatter(values: &[f32], places: &[Option<usize>], into: &mut [f32]) {
    for (&value, place) in values.iter().zip(places) {
        if let Some(place) = place {
            into[*place] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TokenizedExample;
    use crate::torch::gradients::per_example_gradients;
    use crate::torch::mlp::Prediction;
    use crate::torch::test_support::{dense, examples, weights};
    use crate::torch::transformer::Transformer;
    use simfluence_core::NoProgress;

    fn transformer(tied_output: bool) -> Transformer {
        Transformer::with_kind(&weights(tied_output), Device::Cpu, Kind::Double)
    }

    fn settings(approximation: Approximation, memory: usize) -> GradientSettings {
        GradientSettings {
            memory,
            approximation,
            ..GradientSettings::default()
        }
    }

    fn products<M: Model>(
        model: &M,
        train: &[M::Example],
        test: &[M::Example],
        metric: &Metric,
        wanted: Wanted,
        settings: &GradientSettings,
    ) -> InnerProducts {
        inner_products(model, train, test, metric, wanted, settings, &NoProgress).unwrap()
    }

    /// A metric with rotations for every plain matrix of a model, and random positive weights.
    fn rotated_metric<M: Model>(model: &M, example: &M::Example) -> Metric {
        let captured = Captured::new(model, &model.batch(&[example]), |o| o.losses());
        let wave = |rows: i64, columns: i64, speed: f64| {
            let options = (Kind::Double, Device::Cpu);
            (Tensor::arange(rows * columns, options) * speed)
                .sin()
                .view([rows, columns])
        };
        let orthogonal = |n: i64| Tensor::linalg_qr(&wave(n, n, 1.7), "reduced").0;
        let of = |block: &Block| BlockMetric {
            rotation: (block.is_plain())
                .then(|| (orthogonal(block.rows), orthogonal(block.columns))),
            weights: wave(block.rows, block.columns, 0.9) + 1.5,
        };
        let all = blocks(model.layout(), &captured);
        Metric::Blocks(all.iter().map(of).collect())
    }

    fn diagonal<M: Model>(model: &M) -> Metric {
        let options = (Kind::Double, Device::Cpu);
        let length = model.layout().flat_len() as i64;
        Metric::Diagonal((Tensor::arange(length, options) * 0.37).cos() + 1.5)
    }

    fn error(got: &[f32], expected: &[f32]) -> f64 {
        assert_eq!(got.len(), expected.len());
        let square = |a: f64| a * a;
        let error: f64 = (got.iter().zip(expected))
            .map(|(a, b)| square(f64::from(a - b)))
            .sum();
        let size: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
        (error / size).sqrt()
    }

    /// Rows (columns) of targets summed to examples.
    fn summed(found: &InnerProducts, train: &[usize], test: &[usize]) -> Vec<f32> {
        let width: usize = test.iter().sum();
        let mut sums = Vec::new();
        let mut first = 0;
        for rows in train {
            let mut column = 0;
            for columns in test {
                let mut sum = 0.0_f64;
                for row in first..first + rows {
                    let own = &found.products[row * width + column..][..*columns];
                    sum += own.iter().map(|&v| f64::from(v)).sum::<f64>();
                }
                sums.push(sum as f32);
                column += columns;
            }
            first += rows;
        }
        sums
    }

    fn answers(examples: &[TokenizedExample]) -> Vec<usize> {
        let of = TokenizedExample::target_count;
        examples.iter().map(of).collect()
    }

    #[test]
    fn products_of_targets_sum_to_those_of_examples() {
        for tied_output in [true, false] {
            let model = transformer(tied_output);
            let (train, test) = (examples(9, 0), examples(5, 4));
            let (rows, columns) = (answers(&train), answers(&test));
            assert!(rows.contains(&1) && rows.contains(&3), "{rows:?}");
            for metric in [
                Metric::Identity,
                diagonal(&model),
                rotated_metric(&model, &train[0]),
            ] {
                for memory in [1 << 30, 1 << 16, 0] {
                    let of = |train_targets, test_targets, layers| {
                        let wanted = Wanted {
                            train_targets,
                            test_targets,
                            layers,
                            norms: false,
                        };
                        let settings = settings(Approximation::Exact, memory);
                        products(&model, &train, &test, &metric, wanted, &settings)
                    };
                    let whole = of(false, false, false).products;
                    let ones = [1; 5];
                    let found = of(true, false, true);
                    assert_eq!(found.products.len(), rows.iter().sum::<usize>() * 5);
                    assert!(error(&summed(&found, &rows, &ones), &whole) < 1e-6);
                    let mut layers = vec![0.0; found.products.len()];
                    for (_, values) in &found.layers {
                        layers.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
                    }
                    assert!(error(&layers, &found.products) < 1e-6);
                    let both = summed(&of(true, true, false), &rows, &columns);
                    assert!(error(&both, &whole) < 1e-6);
                }
            }
        }
    }

    #[test]
    fn ref_the_product_of_a_target_is_the_slope_of_its_own_loss() {
        let model = transformer(true);
        let (train, test) = (examples(4, 0), examples(2, 4));
        let wanted = Wanted {
            train_targets: true,
            ..Wanted::default()
        };
        let exact = settings(Approximation::Exact, 1 << 30);
        let found = products(&model, &train, &test, &Metric::Identity, wanted, &exact);
        let directions = per_example_gradients(&model, &test).unwrap();
        let mut flat = model.flat().shallow_clone();
        let shares = |shift: f64, j: i64, flat: &mut Tensor| -> Vec<f64> {
            let _ = tch::no_grad(|| flat.g_add_(&(directions.get(j) * shift)));
            let mut all = Vec::new();
            for example in &train {
                let outputs = tch::no_grad(|| model.outputs(&model.batch(&[example]), None));
                let own = outputs.position_losses() * &outputs.weights;
                all.extend(Vec::<f64>::try_from(own.view([-1])).unwrap());
            }
            let _ = tch::no_grad(|| flat.g_add_(&(directions.get(j) * -shift)));
            all
        };
        for j in 0..2 {
            let h = 1e-5;
            let (up, down) = (shares(h, j, &mut flat), shares(-h, j, &mut flat));
            assert_eq!(up.len() * 2, found.products.len());
            for (row, (up, down)) in up.iter().zip(&down).enumerate() {
                let expected = (up - down) / (2.0 * h);
                let got = f64::from(found.products[row * 2 + j as usize]);
                assert!(
                    (got - expected).abs() < 1e-6 * (1.0 + expected.abs()),
                    "{got} {expected}"
                );
            }
        }
    }

    /// Errors of the products by rank.
    fn rank_errors<M: Model>(
        model: &M,
        train: &[M::Example],
        test: &[M::Example],
        metric: &Metric,
    ) -> Vec<f64> {
        let wanted = Wanted {
            norms: true,
            layers: true,
            ..Wanted::default()
        };
        let exact = settings(Approximation::Exact, 1 << 30);
        let exact = products(model, train, test, metric, wanted, &exact);
        let of = |rank| {
            let mut errors = Vec::new();
            for memory in [1 << 30, 1 << 14] {
                let low = settings(Approximation::LowRank { rank, seed: 7 }, memory);
                let got = products(model, train, test, metric, wanted, &low);
                assert!(error(&got.train_norms, &exact.train_norms) < 1e-6);
                assert!(error(&got.test_norms, &exact.test_norms) < 1e-6);
                errors.push(error(&got.products, &exact.products));
            }
            // Memory changes the work, not the result.
            assert!((errors[0] - errors[1]).abs() < 1e-6, "{errors:?}");
            errors[0]
        };
        [1, 2, 4, 64].into_iter().map(of).collect()
    }

    #[test]
    fn low_rank_queries_are_exact_at_full_rank_and_better_with_every_rank() {
        for tied_output in [true, false] {
            let model = transformer(tied_output);
            let (train, test) = (examples(9, 0), examples(5, 4));
            for metric in [
                Metric::Identity,
                diagonal(&model),
                rotated_metric(&model, &train[0]),
            ] {
                let errors = rank_errors(&model, &train, &test, &metric);
                assert!(errors[3] < 1e-6, "{errors:?}");
                assert!(errors.windows(2).all(|e| e[1] < e[0]), "{errors:?}");
                assert!(errors[0] > 1e-3, "{errors:?}");
            }
        }
    }

    #[test]
    fn rank_one_is_exact_where_examples_have_one_position() {
        let (model, train, test) = dense(Prediction::Classes);
        let errors = rank_errors(&model, &train, &test, &Metric::Identity);
        assert!(errors.iter().all(|&e| e < 1e-6), "{errors:?}");
    }

    #[test]
    fn low_rank_queries_take_less_memory_and_fewer_passes() {
        let model = transformer(false);
        let (train, test) = (examples(6, 0), examples(40, 4));
        let evaluations = |approximation| {
            let settings = settings(approximation, 1 << 17);
            let metric = Metric::Identity;
            products(&model, &train, &test, &metric, Wanted::default(), &settings)
                .gradient_evaluations
        };
        let low_rank = Approximation::LowRank { rank: 1, seed: 0 };
        assert!(evaluations(low_rank) < evaluations(Approximation::Exact));
    }

    #[test]
    fn ref_projections_are_unbiased_with_the_variance_that_is_promised() {
        let model = transformer(true);
        let (train, test) = (examples(4, 0), examples(3, 4));
        for metric in [
            Metric::Identity,
            diagonal(&model),
            rotated_metric(&model, &train[0]),
        ] {
            let wanted = Wanted {
                norms: true,
                ..Wanted::default()
            };
            let exact = settings(Approximation::Exact, 1 << 30);
            let exact = products(&model, &train, &test, &metric, wanted, &exact);
            let mut mean_errors = Vec::new();
            for dimensions in [16, 64, 256] {
                let draws = 60;
                let mut sums = [0.0_f64; 12];
                let mut squares = [0.0_f64; 12];
                for seed in 0..draws {
                    let projection = Approximation::Projection { dimensions, seed };
                    let settings = settings(projection, 1 << 30);
                    let got = products(&model, &train, &test, &metric, wanted, &settings);
                    for (k, (a, b)) in got.products.iter().zip(&exact.products).enumerate() {
                        sums[k] += f64::from(a - b);
                        squares[k] += f64::from(a - b).powi(2);
                    }
                }
                let mut relative = 0.0;
                for k in 0..12 {
                    let g = f64::from(exact.train_norms[k / 3]);
                    let h = f64::from(exact.test_norms[k % 3]);
                    let product = f64::from(exact.products[k]);
                    let bound = ((g * h).powi(2) + product.powi(2)) / dimensions as f64;
                    let mean = sums[k] / draws as f64;
                    let deviation = (bound / draws as f64).sqrt();
                    assert!(mean.abs() < 4.5 * deviation, "{k}: {mean} {deviation}");
                    let variance = squares[k] / draws as f64;
                    // 60 squares of about normal errors stay within 2.2 times their mean.
                    assert!(variance < 2.2 * bound, "{k}: {variance} {bound}");
                    relative += variance / (g * h).powi(2) / 12.0;
                }
                mean_errors.push(relative.sqrt());
            }
            // Four times the dimensions, half the error.
            for pair in mean_errors.windows(2) {
                let ratio = pair[0] / pair[1];
                assert!((1.6..2.5).contains(&ratio), "{mean_errors:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_projects_alike_whatever_the_memory() {
        let model = transformer(false);
        let (train, test) = (examples(9, 0), examples(5, 4));
        let of = |memory, seed| {
            let projection = Approximation::Projection {
                dimensions: 5000,
                seed,
            };
            let settings = settings(projection, memory);
            let metric = Metric::Identity;
            products(&model, &train, &test, &metric, Wanted::default(), &settings).products
        };
        assert!(error(&of(0, 1), &of(1 << 30, 1)) < 1e-6);
        assert_eq!(of(1 << 30, 1), of(1 << 30, 1));
        assert_ne!(of(1 << 30, 1), of(1 << 30, 2));
    }

    #[test]
    fn approximations_that_cannot_be_are_refused() {
        let (model, train, test) = dense(Prediction::Values);
        let refused = |approximation, layers| {
            let wanted = Wanted {
                layers,
                ..Wanted::default()
            };
            let settings = settings(approximation, 1 << 30);
            let metric = Metric::Identity;
            inner_products(
                &model,
                &train,
                &test,
                &metric,
                wanted,
                &settings,
                &NoProgress,
            )
            .unwrap_err()
            .to_string()
        };
        let low_rank = Approximation::LowRank { rank: 0, seed: 0 };
        assert!(refused(low_rank, false).contains("rank of test gradients is 0"));
        let projection = |dimensions| Approximation::Projection {
            dimensions,
            seed: 0,
        };
        assert!(refused(projection(0), false).contains("0 dimensions"));
        assert!(refused(projection(8), true).contains("mixes the layers"));
    }

    #[test]
    fn small_examples_share_a_pass_and_short_memory_splits_it() {
        let model = transformer(true);
        let metric = Metric::Identity;
        let own = settings(Approximation::Exact, 1 << 30);
        let engine = Engine::new(&model, &metric, Wanted::default(), &own, 1, 1);
        assert_eq!(engine.batch_size(SMALL_BATCH / 100), 100);
        assert_eq!(engine.batch_size(1 << 20), 32);
        assert_eq!(engine.batch_size(1 << 28), 1);
    }
}
