//! Random projections of gradients to a few dimensions.
//!
//! The values of a gradient are cut into chunks of `k`. Every value gets a random sign, every
//! chunk is rotated by a random shift, and the chunks are added up: a count sketch whose buckets
//! are drawn chunk by chunk, so that it works on contiguous memory. Two different values share a
//! place with probability `1/k` (0 within a chunk), and their signs are independent, hence
//! `E⟨Sg, Sh⟩ = ⟨g, h⟩` and `Var ≤ (‖g‖² ‖h‖² + ⟨g, h⟩²) / k`.

use super::blocks::Block;
use crate::torch::model::Model;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

/// Smallest chunk: shorter ones would cost more in calls than in arithmetic.
const SMALLEST_CHUNK: i64 = 4096;

/// Signs and shifts of a projection.
#[derive(Debug)]
pub(super) struct Sketch {
    dimensions: i64,
    /// Length of a chunk, a multiple of the dimensions.
    chunk: i64,
    blocks: Vec<BlockSketch>,
    /// Shift of each part of a chunk when it is folded to the dimensions.
    folds: Vec<i64>,
}

#[derive(Debug)]
struct BlockSketch {
    /// `[values]`, 1 or −1.
    signs: Tensor,
    /// One per chunk.
    shifts: Vec<i64>,
}

impl Sketch {
    /// Draws the signs and shifts of a model's blocks. They depend on the seed, the dimensions and
    /// the shapes of the blocks only.
    pub(super) fn new<M: Model>(blocks: &[Block], dimensions: usize, seed: u64, model: &M) -> Self {
        let dimensions = dimensions as i64;
        let parts = (SMALLEST_CHUNK + dimensions - 1) / dimensions;
        let chunk = dimensions * parts;
        let draw = |(index, block): (usize, &Block)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(index as u64 + 1);
            let shifts = (0..(block.len() + chunk - 1) / chunk)
                .map(|_| rng.random_range(0..chunk))
                .collect();
            BlockSketch {
                signs: signs(block.len(), &mut rng)
                    .to_device(model.device())
                    .to_kind(model.kind()),
                shifts,
            }
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            dimensions,
            chunk,
            blocks: blocks.iter().enumerate().map(draw).collect(),
            folds: (0..parts)
                .map(|_| rng.random_range(0..dimensions))
                .collect(),
        }
    }

    /// Sums of the chunks of some examples, before anything is added.
    pub(super) fn start(&self, examples: i64, like: &Tensor) -> Tensor {
        Tensor::zeros([examples, self.chunk], (like.kind(), like.device()))
    }

    /// Adds a block's gradients, `[examples × values]`; they are overwritten.
    pub(super) fn add(&self, index: usize, gradients: &mut Tensor, sums: &Tensor) {
        let block = &self.blocks[index];
        let gradients = gradients.g_mul_(&block.signs);
        let values = gradients.size()[1];
        for (k, &shift) in block.shifts.iter().enumerate() {
            let first = k as i64 * self.chunk;
            let chunk = gradients.narrow(1, first, self.chunk.min(values - first));
            add_shifted(&chunk, shift, sums);
        }
    }

    /// The projections, `[examples × dimensions]`, of the sums.
    pub(super) fn finish(&self, sums: &Tensor) -> Tensor {
        if self.folds.len() == 1 {
            return sums.shallow_clone();
        }
        let options = (sums.kind(), sums.device());
        let folded = Tensor::zeros([sums.size()[0], self.dimensions], options);
        for (k, &shift) in self.folds.iter().enumerate() {
            let part = sums.narrow(1, k as i64 * self.dimensions, self.dimensions);
            add_shifted(&part, shift, &folded);
        }
        folded
    }
}

/// Adds the columns of `chunk` to those of `sums`, rotated to the right by `shift`.
fn add_shifted(chunk: &Tensor, shift: i64, sums: &Tensor) {
    let (length, width) = (chunk.size()[1], sums.size()[1]);
    let before = length.min(width - shift);
    let _ = (sums.narrow(1, shift, before)).g_add_(&chunk.narrow(1, 0, before));
    if before < length {
        let rest = length - before;
        let _ = (sums.narrow(1, 0, rest)).g_add_(&chunk.narrow(1, before, rest));
    }
}

/// So many random signs.
fn signs(count: i64, rng: &mut ChaCha8Rng) -> Tensor {
    let mut signs = Vec::with_capacity(count as usize);
    while (signs.len() as i64) < count {
        let bits = rng.next_u64();
        let room = (count as usize - signs.len()).min(64);
        signs.extend((0..room).map(|k| if bits >> k & 1 == 1 { 1.0_f32 } else { -1.0 }));
    }
    Tensor::from_slice(&signs)
}
