//! The parameters cut into blocks, and what is done with one block of many examples' gradients:
//! form it, or take inner products without forming it.

use super::tape::{Left, Piece, Tape, equal};
use crate::torch::model::{Model, Outputs};
use crate::weights::{Layout, ParameterSpec};
use tch::{Kind, Tensor};

/// What the gradients of the examples of one batch are made of.
#[derive(Debug)]
pub(in crate::torch) struct Captured {
    pieces: Vec<Piece>,
    /// Number of examples.
    pub(in crate::torch) examples: i64,
}

impl Captured {
    /// One forward and one backward pass over a batch. `loss` gives each example's loss,
    /// `[examples]`, from the model's outputs.
    pub(in crate::torch) fn new<M: Model>(
        model: &M,
        batch: &M::Batch,
        loss: impl FnOnce(&Outputs) -> Tensor,
    ) -> Self {
        let mut tape = Tape::default();
        let outputs = model.outputs(batch, Some(&mut tape));
        let losses = loss(&outputs);
        let examples = losses.size()[0];
        Self {
            pieces: tape.backward(&losses.sum(model.kind()), examples, false),
            examples,
        }
    }

    /// One forward pass and several backward passes over a batch, one per loss.
    pub(in crate::torch) fn several<M: Model>(
        model: &M,
        batch: &M::Batch,
        losses: impl FnOnce(&Outputs) -> Vec<Tensor>,
    ) -> Vec<Self> {
        let mut all = Vec::new();
        Self::each(model, batch, losses, |captured| all.push(captured));
        all
    }

    /// The same, handed on one by one; gives their number.
    pub(in crate::torch) fn each<M: Model>(
        model: &M,
        batch: &M::Batch,
        losses: impl FnOnce(&Outputs) -> Vec<Tensor>,
        mut take: impl FnMut(Self),
    ) -> usize {
        let mut tape = Tape::default();
        let outputs = model.outputs(batch, Some(&mut tape));
        let losses = losses(&outputs);
        let count = losses.len();
        for (k, losses) in losses.iter().enumerate() {
            let examples = losses.size()[0];
            let loss = losses.sum(model.kind());
            let pieces = tape.backward(&loss, examples, k + 1 < count);
            take(Self { pieces, examples });
        }
        count
    }

    /// Memory it holds, bytes.
    pub(in crate::torch) fn bytes(&self) -> usize {
        self.pieces.iter().map(Piece::bytes).sum()
    }

    /// Some of the examples, as views.
    pub(in crate::torch) fn narrow(&self, first: i64, count: i64) -> Self {
        let pieces = self.pieces.iter().map(|p| p.narrow(first, count));
        Self {
            pieces: pieces.collect(),
            examples: count,
        }
    }

    /// From pieces that were made otherwise.
    pub(super) fn of_pieces(pieces: Vec<Piece>, examples: i64) -> Self {
        Self { pieces, examples }
    }

    /// Each example's gradient times a factor, `[examples]`.
    pub(in crate::torch) fn scaled(&self, factors: &Tensor) -> Self {
        Self {
            pieces: self.pieces.iter().map(|p| p.scaled(factors)).collect(),
            examples: self.examples,
        }
    }

    /// The same in other bases: `u ← u R`, `v ← v C` for the blocks with a rotation `(R, C)`.
    pub(in crate::torch) fn rotated<'a>(
        mut self,
        blocks: &[Block],
        rotations: impl Iterator<Item = Option<&'a (Tensor, Tensor)>>,
    ) -> Self {
        for (block, rotation) in blocks.iter().zip(rotations) {
            if let Some((rows, columns)) = rotation {
                let piece = &mut self.pieces[block.pieces[0]];
                if let Piece::Outer {
                    left: Left::Dense(left),
                    right,
                    ..
                } = piece
                {
                    *left = left.matmul(rows);
                    *right = right.matmul(columns);
                }
            }
        }
        self
    }
}

/// Parameters whose gradients are handled together: the rows of a matrix with their bias, or a
/// vector.
#[derive(Debug, Clone)]
pub(in crate::torch) struct Block {
    /// Name of the layer, for example `layers.0.attention.qkv`.
    pub(in crate::torch) layer: String,
    /// Which pieces of a [`Captured`] contribute.
    pieces: Vec<usize>,
    /// Rows and columns, the bias column included; a vector is one row.
    pub(in crate::torch) rows: i64,
    pub(in crate::torch) columns: i64,
    /// Whether it is a sum of outer products.
    pub(in crate::torch) is_matrix: bool,
    /// Whether the left side of those is a layer's output gradient.
    is_dense: bool,
    /// Whether its gradients are formed as `[columns × rows]`.
    pub(super) is_formed_transposed: bool,
    /// First value of the weights in the flat buffer.
    offset: i64,
    /// First value of the bias in the flat buffer.
    bias: Option<i64>,
}

/// The blocks of a model, from what one of its batches left.
pub(in crate::torch) fn blocks(layout: &Layout, captured: &Captured) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for (index, piece) in captured.pieces.iter().enumerate() {
        let block = Block::of(index, piece, layout);
        // A matrix that is used twice (a tied output) has one gradient.
        match blocks.iter_mut().find(|b| b.offset == block.offset) {
            Some(known) => known.pieces.push(index),
            None => blocks.push(block),
        }
    }
    for block in &mut blocks {
        block.is_formed_transposed = block.is_plain() && block.rows > block.columns;
    }
    blocks
}

impl Block {
    fn of(index: usize, piece: &Piece, layout: &Layout) -> Self {
        let spec = |parameter: usize| &layout.specs()[parameter];
        match piece {
            Piece::Formed { parameter, .. } => Self {
                layer: layer_of(spec(*parameter)),
                pieces: vec![index],
                rows: 1,
                columns: spec(*parameter).len() as i64,
                is_matrix: false,
                is_dense: false,
                is_formed_transposed: false,
                offset: spec(*parameter).offset as i64,
                bias: None,
            },
            Piece::Outer {
                weight,
                bias,
                first_row,
                left,
                right,
            } => {
                let weights = spec(*weight);
                let columns = weights.shape[1] as i64;
                Self {
                    layer: layer_of(weights),
                    pieces: vec![index],
                    rows: match left {
                        Left::Dense(u) => u.size()[2],
                        Left::Tokens(_) => weights.shape[0] as i64,
                    },
                    columns: right.size()[2],
                    is_matrix: true,
                    is_dense: matches!(left, Left::Dense(_)),
                    is_formed_transposed: false,
                    offset: weights.offset as i64 + first_row * columns,
                    bias: bias.map(|b| spec(b).offset as i64 + first_row),
                }
            }
        }
    }

    /// Values per example.
    pub(in crate::torch) fn len(&self) -> i64 {
        self.rows * self.columns
    }

    /// Values per example as two thin matrices of this rank; a vector stays as it is.
    pub(super) fn low_rank_len(&self, rank: i64) -> i64 {
        match self.is_matrix {
            true => rank.min(self.rows).min(self.columns) * (self.rows + self.columns),
            false => self.len(),
        }
    }

    /// Most outer products of an example in one piece.
    pub(super) fn positions(&self, captured: &Captured) -> i64 {
        let of = |piece: &usize| match &captured.pieces[*piece] {
            Piece::Outer { right, .. } => right.size()[1],
            Piece::Formed { .. } => 1,
        };
        self.pieces.iter().map(of).max().unwrap_or(1)
    }

    /// Whether the last column is a bias.
    pub(in crate::torch) fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// Shape in which an example's gradient is formed. The longer side comes last, which matrix
    /// products write faster: a plain matrix of more rows than columns is formed transposed.
    pub(in crate::torch) fn formed_shape(&self) -> [i64; 2] {
        if self.is_formed_transposed {
            [self.columns, self.rows]
        } else {
            [self.rows, self.columns]
        }
    }

    /// `[… × rows × columns]` in the shape of formed gradients.
    pub(in crate::torch) fn as_formed(&self, matrices: &Tensor) -> Tensor {
        if self.is_formed_transposed {
            matrices.transpose(-2, -1).contiguous()
        } else {
            matrices.shallow_clone()
        }
    }

    /// Whether it is the matrix of one linear layer and nothing else.
    pub(in crate::torch) fn is_plain(&self) -> bool {
        self.is_dense && self.pieces.len() == 1
    }

    /// The same block of a [`Captured`] that holds it in this one piece, a sum of dense outer
    /// products if it is a matrix.
    pub(super) fn alone(&self, piece: usize) -> Self {
        Self {
            pieces: vec![piece],
            is_dense: self.is_matrix,
            ..self.clone()
        }
    }

    /// The single outer product of a block that is nothing else: `u` and `v`, each `[examples ×
    /// positions × …]`.
    pub(in crate::torch) fn factors<'a>(
        &self,
        captured: &'a Captured,
    ) -> Option<(&'a Tensor, &'a Tensor)> {
        match (&self.pieces[..], &captured.pieces[self.pieces[0]]) {
            (
                [_],
                Piece::Outer {
                    left: Left::Dense(left),
                    right,
                    ..
                },
            ) => Some((left, right)),
            _ => None,
        }
    }

    /// Multiplications to form one example's block.
    fn forming_cost(&self, captured: &Captured) -> f64 {
        let mut cost = 0.0;
        for &piece in &self.pieces {
            if let Piece::Outer { left, right, .. } = &captured.pieces[piece] {
                let positions = right.size()[1] as f64;
                cost += positions
                    * match left {
                        Left::Dense(_) => self.len() as f64,
                        Left::Tokens(_) => self.columns as f64,
                    };
            }
        }
        cost
    }

    /// Multiplications for one pair of examples without forming either; `other` is the same block
    /// as `b` holds it.
    fn direct_cost(&self, a: &Captured, other: &Self, b: &Captured) -> f64 {
        let mut cost = 0.0;
        for &p in &self.pieces {
            for &q in &other.pieces {
                let (
                    Piece::Outer {
                        left: u, right: v, ..
                    },
                    Piece::Outer {
                        left: w, right: x, ..
                    },
                ) = (&a.pieces[p], &b.pieces[q])
                else {
                    continue;
                };
                let pairs = (v.size()[1] * x.size()[1]) as f64;
                let rows = match (u, w) {
                    (Left::Dense(_), Left::Dense(_)) => self.rows as f64,
                    _ => 1.0,
                };
                // A sum over pairs of positions goes through memory: it costs as much as some
                // multiplications do in a matrix product.
                cost += pairs * (rows + self.columns as f64 + MEMORY_COST);
            }
        }
        cost
    }

    /// Whether inner products of `trains` training examples like those of `train` with `tests`
    /// test examples like those of `test` are cheaper without forming gradients; `other` is the
    /// same block as `test` holds it.
    pub(super) fn prefers_direct(
        &self,
        train: &Captured,
        other: &Self,
        test: &Captured,
        trains: usize,
        tests: usize,
    ) -> bool {
        if !self.is_matrix {
            return false;
        }
        let formed = self.len() as f64
            + self.forming_cost(train) / tests as f64
            + other.forming_cost(test) / trains as f64;
        self.direct_cost(train, other, test) < formed
    }

    /// The rows of the formed shape in stripes, each the first row and their number: thin, so that
    /// those of many examples take little memory. What is no plain matrix is one stripe.
    pub(in crate::torch) fn stripes(&self) -> Vec<(i64, i64)> {
        let rows = self.formed_shape()[0];
        let height = if self.is_plain() { STRIPE_ROWS } else { rows };
        let stripe = |first: i64| (first, height.min(rows - first));
        (0..rows).step_by(height as usize).map(stripe).collect()
    }

    /// Writes the gradients of the examples into `out`, `[examples × formed shape]` and
    /// contiguous.
    pub(in crate::torch) fn form(&self, captured: &Captured, out: &mut Tensor) {
        self.form_stripe(captured, 0, out);
    }

    /// The same of one of the [stripes](Self::stripes), `[examples × its rows × formed columns]`.
    pub(in crate::torch) fn form_stripe(&self, captured: &Captured, first: i64, out: &mut Tensor) {
        let height = out.size()[1];
        for (k, &piece) in self.pieces.iter().enumerate() {
            match &captured.pieces[piece] {
                Piece::Formed {
                    first: start, rows, ..
                } => {
                    let values = rows.size()[1];
                    let mut flat = out.view([captured.examples, self.len()]);
                    if k == 0 && values < self.len() {
                        let _ = flat.zero_();
                    }
                    let mut slot = flat.narrow(1, *start, values);
                    if k == 0 {
                        slot.copy_(rows);
                    } else {
                        slot += rows;
                    }
                }
                Piece::Outer {
                    left: Left::Dense(left),
                    right,
                    ..
                } => {
                    let (left, right) = match self.is_formed_transposed {
                        true => (right, left),
                        false => (left, right),
                    };
                    let left = left.narrow(2, first, height).transpose(1, 2);
                    if k == 0 {
                        let _ = left.bmm_out(out, right);
                    } else {
                        let _ = out.baddbmm_(&left, right);
                    }
                }
                Piece::Outer {
                    left: Left::Tokens(tokens),
                    right,
                    ..
                } => {
                    if k == 0 {
                        let _ = out.zero_();
                    }
                    let index = tokens.unsqueeze(2).expand_as(right);
                    let _ = out.scatter_add_(1, &index, right);
                }
            }
        }
    }

    /// Inner products of every example of `a` with every example of `b`, `[a × b]`, without
    /// forming a gradient: `Σ_t Σ_s (u_t · u'_s)(v_t · v'_s)`; `other` is the same block as `b`
    /// holds it.
    pub(super) fn direct_products(&self, a: &Captured, other: &Self, b: &Captured) -> Tensor {
        let mut sum: Option<Tensor> = None;
        for &p in &self.pieces {
            for &q in &other.pieces {
                let term = direct_term(&a.pieces[p], &b.pieces[q]);
                sum = Some(match sum {
                    Some(sum) => sum + term,
                    None => term,
                });
            }
        }
        sum.expect("a block has pieces")
    }

    /// Inner products of every example with one vector's block `[rows × columns]`, `[examples]`,
    /// without forming a gradient: `Σ_t u_t · (V v_t)`.
    pub(super) fn along(&self, captured: &Captured, vector: &Tensor) -> Tensor {
        let mut sum = Tensor::zeros([captured.examples], (vector.kind(), vector.device()));
        for &piece in &self.pieces {
            sum += match &captured.pieces[piece] {
                Piece::Formed { first, rows, .. } => {
                    rows.mv(&vector.view([-1]).narrow(0, *first, rows.size()[1]))
                }
                Piece::Outer { left, right, .. } => {
                    let pushed = match left {
                        Left::Dense(left) => left.matmul(vector),
                        Left::Tokens(tokens) => {
                            vector.index_select(0, &tokens.reshape([-1])).view_as(right)
                        }
                    };
                    (pushed * right).sum_dim_intlist([1, 2].as_slice(), false, None::<Kind>)
                }
            };
        }
        sum
    }

    /// The block of flat vectors, `[vectors × flat length]` → `[vectors × rows × columns]`.
    pub(in crate::torch) fn cut(&self, vectors: &Tensor) -> Tensor {
        let count = vectors.size()[0];
        let columns = self.columns - i64::from(self.has_bias());
        let weights = vectors
            .narrow(1, self.offset, self.rows * columns)
            .reshape([count, self.rows, columns]);
        match self.bias {
            None => weights,
            Some(bias) => {
                let bias = vectors.narrow(1, bias, self.rows).unsqueeze(2);
                Tensor::cat(&[weights, bias], 2)
            }
        }
    }

    /// Puts blocks `[vectors × rows × columns]` back into flat vectors.
    pub(in crate::torch) fn paste(&self, block: &Tensor, vectors: &Tensor) {
        let count = vectors.size()[0];
        let columns = self.columns - i64::from(self.has_bias());
        let block = block.view([count, self.rows, self.columns]);
        vectors
            .narrow(1, self.offset, self.rows * columns)
            .copy_(&block.narrow(2, 0, columns).reshape([count, -1]));
        if let Some(bias) = self.bias {
            vectors
                .narrow(1, bias, self.rows)
                .copy_(&block.select(2, columns));
        }
    }
}

/// Rows of a stripe; in tests few, as their models are small.
const STRIPE_ROWS: i64 = if cfg!(test) { 5 } else { 64 };

/// What a value that goes through memory costs, in multiplications of a matrix product.
const MEMORY_COST: f64 = 16.0;

fn direct_term(a: &Piece, b: &Piece) -> Tensor {
    let (
        Piece::Outer {
            left: u, right: v, ..
        },
        Piece::Outer {
            left: w, right: x, ..
        },
    ) = (a, b)
    else {
        unreachable!("only sums of outer products are multiplied without being formed");
    };
    let (sizes, others) = (v.size(), x.size());
    let rows = |t: &Tensor| t.reshape([-1, *t.size().last().expect("features")]);
    let right = rows(v).matmul(&rows(x).transpose(0, 1));
    let left = match (u, w) {
        (Left::Dense(u), Left::Dense(w)) => rows(u).matmul(&rows(w).transpose(0, 1)),
        (Left::Tokens(s), Left::Tokens(t)) => equal(s, t, v.kind()),
        (Left::Tokens(s), Left::Dense(w)) => {
            rows(w).transpose(0, 1).index_select(0, &s.reshape([-1]))
        }
        (Left::Dense(u), Left::Tokens(t)) => rows(u).index_select(1, &t.reshape([-1])),
    };
    if sizes[1] == 1 && others[1] == 1 {
        return left * right;
    }
    (left * right)
        .view([sizes[0], sizes[1], others[0], others[1]])
        .sum_dim_intlist([1, 3].as_slice(), false, None::<Kind>)
}

/// `layers.0.mlp.up.weight` → `layers.0.mlp.up`.
fn layer_of(spec: &ParameterSpec) -> String {
    let name = &spec.name;
    let layer = name
        .strip_suffix(".weight")
        .or_else(|| name.strip_suffix(".bias"));
    layer.unwrap_or(name).to_owned()
}
