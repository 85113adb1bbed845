//! Training or test examples as rows of a matrix of inner products.

use super::blocks::Captured;
use crate::torch::model::{Model, Outputs};
use tch::Kind;

/// Examples with the order in which they go through the model and their places in the result.
pub(super) struct Side<'a, M: Model> {
    model: &'a M,
    examples: &'a [M::Example],
    /// Whether every target has a row of its own.
    has_targets: bool,
    /// Ids, longest first, so that batches hold little padding and the first is the largest.
    pub(super) order: Vec<usize>,
    /// Row of each example's first target.
    first: Vec<usize>,
    /// Rows of each example.
    rows: Vec<usize>,
    /// Rows of all examples together.
    pub(super) count: usize,
    /// Most rows of an example.
    pub(super) most: usize,
}

impl<'a, M: Model> Side<'a, M> {
    pub(super) fn new(model: &'a M, examples: &'a [M::Example], has_targets: bool) -> Self {
        let rows: Vec<usize> = (examples.iter())
            .map(|e| if has_targets { model.targets(e) } else { 1 })
            .collect();
        let mut count = 0;
        let mut first = Vec::with_capacity(rows.len());
        for rows in &rows {
            first.push(count);
            count += rows;
        }
        let mut order = by_length(model, examples);
        // Batches of as many targets each; the sort is stable.
        order.sort_by_key(|&i| std::cmp::Reverse(rows[i]));
        Self {
            model,
            examples,
            has_targets,
            order,
            first,
            count,
            most: rows.iter().copied().max().unwrap_or(1),
            rows,
        }
    }

    /// The longest example alone, through the model.
    pub(super) fn longest(&self) -> Option<Captured> {
        let longest = self
            .examples
            .iter()
            .rev()
            .max_by_key(|e| self.model.length(e))?;
        let batch = self.model.batch(&[longest]);
        Some(Captured::new(self.model, &batch, Outputs::losses))
    }

    /// One batch through the model, and the place of every captured row in the result; a row
    /// without a place belongs to a target that its example does not have.
    pub(super) fn capture(&self, ids: &[usize]) -> (Vec<Captured>, Vec<Option<usize>>) {
        let batch = self.model.batch(&pick(self.examples, ids));
        if !self.has_targets {
            let captured = Captured::new(self.model, &batch, Outputs::losses);
            return (
                vec![captured],
                ids.iter().map(|&i| Some(self.first[i])).collect(),
            );
        }
        let captured = Captured::several(self.model, &batch, |outputs| {
            let shares = outputs.position_losses() * &outputs.weights;
            shares.unbind(1)
        });
        let place = |k: usize, i: usize| (k < self.rows[i]).then(|| self.first[i] + k);
        let places = (0..captured.len()).flat_map(|k| ids.iter().map(move |&i| place(k, i)));
        let places = places.collect();
        (captured, places)
    }
}

/// Consecutive examples, together `size` at a time, as views.
pub(super) fn slices(captured: &[Captured], size: usize) -> Vec<Vec<Captured>> {
    let size = size.max(1) as i64;
    let mut all = Vec::new();
    let (mut slice, mut room) = (Vec::new(), size);
    for part in captured {
        let mut first = 0;
        while first < part.examples {
            let count = room.min(part.examples - first);
            slice.push(part.narrow(first, count));
            first += count;
            room -= count;
            if room == 0 {
                all.push(std::mem::take(&mut slice));
                room = size;
            }
        }
    }
    if !slice.is_empty() {
        all.push(slice);
    }
    all
}

/// Ids in the order of the examples' lengths, longest first.
pub(in crate::torch) fn by_length<M: Model>(model: &M, examples: &[M::Example]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..examples.len()).collect();
    ids.sort_by_key(|&i| (std::cmp::Reverse(model.length(&examples[i])), i));
    ids
}

pub(in crate::torch) fn pick<'a, E>(examples: &'a [E], ids: &[usize]) -> Vec<&'a E> {
    ids.iter().map(|&i| &examples[i]).collect()
}

/// Bytes of one value.
pub(super) fn value_bytes(kind: Kind) -> usize {
    kind.elt_size_in_bytes()
}
