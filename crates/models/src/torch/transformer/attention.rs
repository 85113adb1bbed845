//! Attention of one block: among the positions of a stack, and to what an encoder gives.

use super::stack::{Memory, Stack};
use super::{Extras, Transformer, drop_out};
use crate::decoder::{Linear, Projection, QkvPlaces};
use crate::precision::Precision;
use crate::torch::batch::Answers;
use tch::Tensor;

/// Rows of queries, keys and values, `[rows × heads · head width]` each.
type Rows = [Tensor; 3];

impl Transformer {
    /// Attention of the rows `input` of block `layer` to each other, before the output matrix:
    /// `[rows × heads · head width]`, with answers only theirs.
    pub(super) fn attention(
        &self,
        stack: &Stack,
        layer: usize,
        input: &Tensor,
        extras: &mut Extras,
    ) -> Tensor {
        let attention = &self.architecture.decoder().attention;
        let (size, answers) = (stack.size, stack.answers_at(layer));
        let qkv = stack.layer(layer).qkv;
        let rows = self.queries_keys_values(qkv, input, answers, size, extras);
        let [mut queries, mut keys, mut values] = self.by_head(&rows, size);
        if let Some(angles) = &stack.angles {
            let heads = i64::from(attention.heads);
            queries = match answers {
                Some(answers) => angles.of_answers(answers, size, heads).turn(&queries),
                None => angles.turn(&queries),
            };
            keys = angles.turn(&keys);
        }
        if let Some(keep) = &mut extras.keep {
            keep.push((keys.shallow_clone(), values.shallow_clone()));
        }
        if let Some(prefix) = extras.prefix {
            let (first_keys, first_values) = &prefix.layers[layer];
            keys = behind(first_keys, &keys, size);
            values = behind(first_values, &values, size);
        }
        let mask = stack.mask(layer, attention.is_windowed(layer));
        self.attend([queries, keys, values], mask, size, extras)
    }

    /// Attention of the rows `input` to those of an encoder.
    pub(super) fn cross_attention(
        &self,
        [query, key, value]: &[Linear; 3],
        input: &Tensor,
        memory: &Memory,
        size: i64,
        extras: &mut Extras,
    ) -> Tensor {
        let rows = [
            self.linear(input, *query, size, extras),
            self.linear(memory.rows, *key, size, extras),
            self.linear(memory.rows, *value, size, extras),
        ];
        self.attend(self.by_head(&rows, size), memory.mask, size, extras)
    }

    /// Queries, keys and values, `[examples · heads × positions × head width]` each.
    fn by_head(&self, [queries, keys, values]: &Rows, size: i64) -> [Tensor; 3] {
        let attention = &self.architecture.decoder().attention;
        let shared = i64::from(attention.key_value_heads);
        [
            split_heads(queries, size, i64::from(attention.heads)),
            split_heads(keys, size, shared),
            split_heads(values, size, shared),
        ]
    }

    /// `softmax(q kᵀ · scale + mask) v`, written out, so that gradients of gradients exist.
    fn attend(
        &self,
        [queries, keys, values]: [Tensor; 3],
        mask: &Tensor,
        size: i64,
        extras: &mut Extras,
    ) -> Tensor {
        let attention = &self.architecture.decoder().attention;
        let heads = i64::from(attention.heads);
        let sharing = heads / i64::from(attention.key_value_heads);
        let scale = match attention.is_scaled {
            true => 1.0 / f64::from(attention.head_width).sqrt(),
            false => 1.0,
        };
        let keys = repeat_heads(keys, sharing);
        let scores = match self.precision {
            Precision::F32 => mask.baddbmm(&queries, &keys.transpose(1, 2), 1.0, scale),
            Precision::Bf16 => self.bmm(&queries, &keys.transpose(1, 2)) * scale + mask,
        };
        let weights = scores.softmax(-1, None);
        let weights = drop_out(weights, &mut extras.dropout, |rates| rates.attention);
        let values = repeat_heads(values, sharing);
        join_heads(&self.bmm(&weights, &values), size, heads)
    }

    /// With `answers` only their queries.
    fn queries_keys_values(
        &self,
        qkv: QkvPlaces,
        input: &Tensor,
        answers: Option<&Answers>,
        size: i64,
        extras: &mut Extras,
    ) -> Rows {
        let asking = match answers {
            Some(answers) => input.index_select(0, &answers.rows),
            None => input.shallow_clone(),
        };
        match qkv {
            QkvPlaces::Separate([query, key, value]) => [
                self.linear(&asking, query, size, extras),
                self.linear(input, key, size, extras),
                self.linear(input, value, size, extras),
            ],
            QkvPlaces::Fused(qkv) => self.fused(qkv, input, &asking, answers, size, extras),
        }
    }

    fn fused(
        &self,
        qkv: Linear,
        input: &Tensor,
        asking: &Tensor,
        answers: Option<&Answers>,
        size: i64,
        extras: &mut Extras,
    ) -> Rows {
        let attention = &self.architecture.decoder().attention;
        let head_width = i64::from(attention.head_width);
        let of_queries = i64::from(attention.heads) * head_width;
        let of_keys = i64::from(attention.key_value_heads) * head_width;
        let split = |rows: &Tensor, widths: &[i64]| rows.split_with_sizes(widths, 1).into_iter();
        let mut parts: Box<dyn Iterator<Item = Tensor>> = match (attention.projection, answers) {
            (Projection::FusedByHead, _) => {
                let rows = self.linear(input, qkv, size, extras);
                let by_head = rows.view([-1, i64::from(attention.heads), 3, head_width]);
                let parts = by_head.unbind(2).into_iter().enumerate();
                Box::new(parts.map(|(part, rows)| {
                    let rows = rows.reshape([-1, of_queries]);
                    match answers {
                        Some(answers) if part == 0 => rows.index_select(0, &answers.rows),
                        _ => rows,
                    }
                }))
            }
            (_, None) => {
                let rows = self.linear(input, qkv, size, extras);
                Box::new(split(&rows, &[of_queries, of_keys, of_keys]))
            }
            // An adapter of all three reads the same values without some.
            (_, Some(answers)) if self.architecture.decoder().dropout.adapter > 0.0 => {
                let rows = self.linear(input, qkv, size, extras);
                let mut parts = split(&rows, &[of_queries, of_keys, of_keys]);
                let queries = parts.next().expect("queries, keys and values");
                Box::new(std::iter::once(queries.index_select(0, &answers.rows)).chain(parts))
            }
            (_, Some(_)) => {
                let queries = self.linear_rows(asking, qkv, Some((0, of_queries)), size, extras);
                let others = Some((of_queries, 2 * of_keys));
                let others = self.linear_rows(input, qkv, others, size, extras);
                Box::new(std::iter::once(queries).chain(split(&others, &[of_keys, of_keys])))
            }
        };
        let mut next = || parts.next().expect("queries, keys and values");
        [next(), next(), next()]
    }
}

/// `[examples · positions × heads · head width]` → `[examples · heads × positions × head width]`.
fn split_heads(rows: &Tensor, size: i64, heads: i64) -> Tensor {
    let head_width = rows.size()[1] / heads;
    rows.reshape([size, -1, heads, head_width])
        .transpose(1, 2)
        .reshape([size * heads, -1, head_width])
}

/// `[examples · heads × positions × head width]` → `[examples · positions × heads · head width]`.
fn join_heads(vectors: &Tensor, size: i64, heads: i64) -> Tensor {
    let shape = vectors.size();
    let (positions, head_width) = (shape[1], shape[2]);
    vectors
        .view([size, heads, positions, head_width])
        .transpose(1, 2)
        .reshape([size * positions, heads * head_width])
}

/// Every head so many times in a row, for the query heads that share it.
fn repeat_heads(vectors: Tensor, times: i64) -> Tensor {
    if times == 1 {
        return vectors;
    }
    let shape = vectors.size();
    vectors
        .unsqueeze(1)
        .expand([shape[0], times, shape[1], shape[2]], false)
        .reshape([shape[0] * times, shape[1], shape[2]])
}

/// Keys or values of the shared prefix in front of those of every sequence.
fn behind(prefix: &Tensor, own: &Tensor, size: i64) -> Tensor {
    let shape = prefix.size();
    let (heads, positions, head_width) = (shape[0], shape[1], shape[2]);
    let repeated = prefix
        .unsqueeze(0)
        .expand([size, heads, positions, head_width], false)
        .reshape([size * heads, positions, head_width]);
    Tensor::cat(&[&repeated, own], 1)
}
