//! Inner products of training and test gradients, block by block in bounded memory.
//!
//! Every example goes through the model once per chunk that memory allows; what is kept of it are
//! the inputs and output gradients of the layers, not its gradient. For each block of parameters
//! the engine then picks what is cheaper: forming the gradients and one matrix product, or
//! multiplying inputs with inputs and output gradients with output gradients.

use super::blocks::{Block, Captured, blocks};
use super::{GradientError, GradientSettings};
use crate::torch::model::{Model, Outputs, check_all};
use crate::torch::transformer::to_vec;
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

/// What is computed besides the inner products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The inner products of every layer on its own; they sum to the whole ones.
    pub layers: bool,
    /// The norms of the gradients, `√(gᵀ M⁻¹ g)`.
    pub norms: bool,
}

/// Inner products `g_iᵀ M⁻¹ g_j` of the gradients of training and test losses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InnerProducts {
    /// `[train × test]`, row-major.
    pub products: Vec<f32>,
    /// Name and `[train × test]` products of each layer, where wanted.
    pub layers: Vec<(String, Vec<f32>)>,
    /// `√(g_iᵀ M⁻¹ g_i)` of the training examples, where wanted.
    pub train_norms: Vec<f32>,
    /// `√(g_jᵀ M⁻¹ g_j)` of the test examples, where wanted.
    pub test_norms: Vec<f32>,
    /// Gradients evaluated: examples that went through the model, forward and backward.
    pub gradient_evaluations: u64,
}

/// Inner products of every training with every test gradient in bounded memory.
///
/// Progress is counted in examples that went through the model.
///
/// # Errors
/// An example that the model cannot read.
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
    let mut engine = Engine::new(model, metric, wanted, settings, train.len(), test.len());
    let test_order = by_length(model, test);
    let train_order = by_length(model, train);
    let bytes = match test_order.first() {
        Some(&longest) => engine.learn_blocks(&test[longest]),
        None => 0,
    };
    let rounds = test_order
        .len()
        .div_ceil(engine.tests_at_once(bytes).max(1));
    progress.begin("gradients", (test.len() + rounds * train.len()) as u64);
    for chunk in test_order.chunks(engine.tests_at_once(bytes)) {
        let queries = Queries::Examples(engine.capture(test, chunk, progress));
        engine.against(&queries, chunk, train, &train_order, progress);
    }
    progress.end();
    Ok(engine.result)
}

/// Inner products `g_i · v_q` of every training gradient with some vectors `[vectors × flat
/// length]`, as [`inner_products`]; the vectors take the place of the test examples.
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
    let mut engine = Engine::new(
        model,
        &Metric::Identity,
        wanted,
        settings,
        train.len(),
        count,
    );
    let train_order = by_length(model, train);
    if let Some(&longest) = train_order.first() {
        engine.learn_blocks(&train[longest]);
    }
    progress.begin("gradients", train.len() as u64);
    let ids: Vec<usize> = (0..count).collect();
    engine.against(
        &Queries::Vectors(vectors),
        &ids,
        train,
        &train_order,
        progress,
    );
    progress.end();
    Ok(engine.result)
}

/// Share of the memory for the test examples' captured layers, for the training examples', and
/// for the formed gradients of a block of test and of training examples.
const SHARES: [f64; 4] = [0.24, 0.53, 0.11, 0.12];

/// Training examples whose gradients of a block are formed for one matrix product.
const PRODUCT_ROWS: usize = 128;

/// The other side of the training examples.
enum Queries<'a> {
    Examples(Vec<Captured>),
    Vectors(&'a Tensor),
}

struct Engine<'a, M: Model> {
    model: &'a M,
    metric: &'a Metric,
    wanted: Wanted,
    settings: &'a GradientSettings,
    blocks: Vec<Block>,
    /// Bytes that one captured example takes.
    bytes: usize,
    tests: usize,
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
        trains: usize,
        tests: usize,
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
            bytes: 0,
            tests,
            result: InnerProducts {
                products: vec![0.0; trains * tests],
                train_norms: norms(trains),
                test_norms: norms(tests),
                ..InnerProducts::default()
            },
            scratch: [empty(), empty()],
        }
    }

    /// Learns the blocks from the longest example and gives the bytes that it takes.
    fn learn_blocks(&mut self, longest: &M::Example) -> usize {
        let captured = Captured::new(self.model, &self.model.batch(&[longest]), Outputs::losses);
        self.blocks = blocks(self.model.layout(), &captured);
        self.bytes = captured.bytes().max(1);
        if self.wanted.layers {
            for block in &self.blocks {
                if !self
                    .result
                    .layers
                    .iter()
                    .any(|(name, _)| *name == block.layer)
                {
                    let values = vec![0.0; self.result.products.len()];
                    self.result.layers.push((block.layer.clone(), values));
                }
            }
        }
        self.bytes
    }

    fn memory(&self, share: usize) -> f64 {
        self.settings.memory as f64 * SHARES[share]
    }

    /// Examples that take at most a share of the memory, at least one batch.
    fn examples_within(&self, share: usize, bytes_each: usize) -> usize {
        let count = (self.memory(share) / bytes_each.max(1) as f64) as usize;
        count.max(self.settings.batch_size.max(1))
    }

    fn largest_block(&self) -> usize {
        let values = self.blocks.iter().map(|b| b.len()).max().unwrap_or(1);
        values as usize * self.model.kind().elt_size_in_bytes()
    }

    fn tests_at_once(&self, bytes: usize) -> usize {
        (self.examples_within(0, bytes)).min(self.examples_within(2, self.largest_block()))
    }

    /// Runs examples through the model, in batches.
    fn capture(
        &mut self,
        examples: &[M::Example],
        ids: &[usize],
        progress: &dyn Progress,
    ) -> Vec<Captured> {
        let mut all = Vec::new();
        for ids in ids.chunks(self.settings.batch_size.max(1)) {
            let batch = self.model.batch(&pick(examples, ids));
            let captured = Captured::new(self.model, &batch, Outputs::losses);
            all.push(self.rotated(captured));
            self.result.gradient_evaluations += ids.len() as u64;
            progress.advance(ids.len() as u64);
        }
        all
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

    /// All training examples against some queries, whose places in the result are `columns`.
    fn against(
        &mut self,
        queries: &Queries,
        columns: &[usize],
        train: &[M::Example],
        order: &[usize],
        progress: &dyn Progress,
    ) {
        if self.wanted.norms
            && let Queries::Examples(captured) = queries
        {
            let norms = self.norms(captured);
            scatter(&norms, columns, &mut self.result.test_norms);
        }
        let rounds = order.len().div_ceil(self.examples_within(1, self.bytes));
        for ids in order.chunks(order.len().div_ceil(rounds.max(1)).max(1)) {
            let captured = self.capture(train, ids, progress);
            if self.wanted.norms {
                let norms = self.norms(&captured);
                scatter(&norms, ids, &mut self.result.train_norms);
            }
            let options = (self.model.kind(), self.model.device());
            let sum = Tensor::zeros([ids.len() as i64, columns.len() as i64], options);
            for index in 0..self.blocks.len() {
                let products = self.block_products(index, &captured, queries, columns.len());
                if self.wanted.layers {
                    self.add_to_layer(index, &products, ids, columns);
                }
                let _ = sum.shallow_clone().g_add_(&products);
            }
            for (row, &i) in to_vec(&sum).chunks_exact(columns.len().max(1)).zip(ids) {
                let tests = self.tests;
                scatter(
                    row,
                    columns,
                    &mut self.result.products[i * tests..][..tests],
                );
            }
        }
    }

    fn add_to_layer(&mut self, block: usize, products: &Tensor, ids: &[usize], columns: &[usize]) {
        let name = &self.blocks[block].layer;
        let layer = self.result.layers.iter_mut().find(|(n, _)| n == name);
        let (_, values) = layer.expect("every block's layer has a place");
        for (row, &i) in to_vec(products).chunks_exact(columns.len().max(1)).zip(ids) {
            for (&value, &j) in row.iter().zip(columns) {
                values[i * self.tests + j] += value;
            }
        }
    }

    /// `[train × queries]` of one block.
    fn block_products(
        &mut self,
        index: usize,
        train: &[Captured],
        queries: &Queries,
        count: usize,
    ) -> Tensor {
        let block = self.blocks[index].clone();
        let trains: i64 = train.iter().map(|c| c.examples).sum();
        if let (Queries::Examples(test), Metric::Identity) = (queries, self.metric)
            && block.prefers_direct(&train[0], &test[0], trains as usize, count)
        {
            let rows: Vec<Tensor> = (train.iter())
                .map(|a| {
                    let parts: Vec<Tensor> =
                        test.iter().map(|b| block.direct_products(a, b)).collect();
                    Tensor::cat(&parts, 1)
                })
                .collect();
            return Tensor::cat(&rows, 0);
        }
        let formed = match queries {
            Queries::Examples(test) => {
                let formed = self.form_all(0, &block, test);
                self.weigh(index, &block, formed)
            }
            Queries::Vectors(vectors) if count == 1 => {
                let vector = block.cut(vectors).select(0, 0);
                let rows: Vec<Tensor> = train.iter().map(|c| block.along(c, &vector)).collect();
                return Tensor::cat(&rows, 0).unsqueeze(1);
            }
            Queries::Vectors(vectors) => block.as_formed(&block.cut(vectors)),
        };
        let formed = formed.view([-1, block.len()]);
        let group = (self.memory(3) / self.largest_block() as f64) as usize;
        let group = group.clamp(1, PRODUCT_ROWS);
        let mut rows = Vec::new();
        for part in groups(train, group) {
            let gradients = self.form_all(1, &block, part);
            let gradients = gradients.view([-1, block.len()]);
            // In this order the product is faster.
            rows.push(formed.matmul(&gradients.transpose(0, 1)));
        }
        Tensor::cat(&rows, 1).transpose(0, 1)
    }

    /// The block's gradients of all examples in one of the two buffers, `[examples × formed
    /// shape]`.
    fn form_all(&mut self, buffer: usize, block: &Block, captured: &[Captured]) -> Tensor {
        let examples: i64 = captured.iter().map(|c| c.examples).sum();
        let values = examples * block.len();
        if self.scratch[buffer].size()[0] < values {
            let options = (self.model.kind(), self.model.device());
            self.scratch[buffer] = Tensor::zeros([0], options);
            self.scratch[buffer] = Tensor::zeros([values], options);
        }
        let [rows, columns] = block.formed_shape();
        let shape = [examples, rows, columns];
        let all = self.scratch[buffer].narrow(0, 0, values).view(shape);
        let mut first = 0;
        for captured in captured {
            let mut part = all.narrow(0, first, captured.examples);
            block.form(captured, &mut part);
            first += captured.examples;
        }
        all
    }

    /// Formed gradients in the inverse metric.
    fn weigh(&self, index: usize, block: &Block, formed: Tensor) -> Tensor {
        match self.metric {
            Metric::Identity => formed,
            Metric::Diagonal(diagonal) => {
                let mut formed = formed;
                formed.g_mul_(&block.as_formed(&block.cut(&diagonal.unsqueeze(0))))
            }
            Metric::Blocks(metrics) => {
                let mut formed = formed;
                formed.g_mul_(&block.as_formed(&metrics[index].weights).unsqueeze(0))
            }
        }
    }

    fn norms(&mut self, captured: &[Captured]) -> Vec<f32> {
        let mut norms = Vec::new();
        for captured in captured {
            let options = (Kind::Double, Device::Cpu);
            let mut squares = Tensor::zeros([captured.examples], options);
            for (index, block) in self.blocks.clone().iter().enumerate() {
                let mut formed = self.form_all(1, block, std::slice::from_ref(captured));
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

/// Consecutive batches of together at most `size` examples, at least one batch each.
fn groups(captured: &[Captured], size: usize) -> Vec<&[Captured]> {
    let mut groups = Vec::new();
    let mut rest = captured;
    while let Some(first) = rest.first() {
        let mut examples = first.examples;
        let mut count = 1;
        while count < rest.len() && examples + rest[count].examples <= size as i64 {
            examples += rest[count].examples;
            count += 1;
        }
        groups.push(&rest[..count]);
        rest = &rest[count..];
    }
    groups
}

/// Ids in the order of the examples' lengths, longest first, so that batches hold little padding
/// and the first is the largest.
pub(in crate::torch) fn by_length<M: Model>(model: &M, examples: &[M::Example]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..examples.len()).collect();
    ids.sort_by_key(|&i| (std::cmp::Reverse(model.length(&examples[i])), i));
    ids
}

pub(in crate::torch) fn pick<'a, E>(examples: &'a [E], ids: &[usize]) -> Vec<&'a E> {
    ids.iter().map(|&i| &examples[i]).collect()
}

fn scatter(values: &[f32], ids: &[usize], into: &mut [f32]) {
    for (&value, &id) in values.iter().zip(ids) {
        into[id] = value;
    }
}
