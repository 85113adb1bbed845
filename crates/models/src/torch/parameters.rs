//! The parameters of a model on a device, of which some are trained.

use super::gradients::{Tape, Use};
use crate::weights::{Layout, ParameterSpec};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Parameters in one buffer or, where not all are trained, in two.
#[derive(Debug)]
pub(super) struct Parameters {
    /// All parameters, trained or not.
    whole: Layout,
    values: Vec<Tensor>,
    /// Position of each among those that are trained.
    trained: Vec<Option<usize>>,
    /// The parameters that are trained.
    layout: Layout,
    flat: Tensor,
    parameters: Vec<Tensor>,
}

impl Parameters {
    /// Parameters with the values of `all`, laid out as `whole`; those that are `chosen` are
    /// trained.
    pub fn new(whole: Layout, chosen: &[bool], all: Tensor) -> Self {
        let mut values = views(&whole, &all);
        let of_trained = whole.specs().iter().zip(chosen).filter(|(_, is)| **is);
        let layout =
            Layout::of(of_trained.map(|(spec, _)| (spec.name.clone(), spec.shape.clone())));
        let flat = match layout == whole {
            true => all,
            false => Tensor::zeros([layout.flat_len() as i64], (all.kind(), all.device())),
        };
        let mut parameters = Vec::new();
        let mut trained = Vec::new();
        let mut of_flat = views(&layout, &flat).into_iter();
        for (value, is_chosen) in values.iter_mut().zip(chosen) {
            trained.push(is_chosen.then_some(parameters.len()));
            if *is_chosen {
                let mut view = of_flat.next().expect("as many views as trained parameters");
                if layout != whole {
                    view.copy_(value);
                }
                let parameter = view.detach().set_requires_grad(true);
                *value = parameter.shallow_clone();
                parameters.push(parameter);
            }
        }
        Self {
            whole,
            values,
            trained,
            layout,
            flat,
            parameters,
        }
    }

    /// Names, shapes and places of all of them.
    pub fn whole(&self) -> &Layout {
        &self.whole
    }

    /// One of all of them.
    pub fn value(&self, index: usize) -> &Tensor {
        &self.values[index]
    }

    /// Position among those that are trained of one of all of them; `None` if it is not.
    pub fn position(&self, index: usize) -> Option<usize> {
        self.trained[index]
    }

    /// Names, shapes and places of those that are trained.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Those that are trained, gaps included.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Those that are trained, in order.
    pub fn trained(&self) -> &[Tensor] {
        &self.parameters
    }

    /// What is said of all parameters, of those that are trained.
    pub fn of_trained<T>(&self, all: Vec<T>) -> Vec<T> {
        (all.into_iter().zip(&self.trained))
            .filter_map(|(of_one, trained)| trained.map(|_| of_one))
            .collect()
    }

    /// A copy of all of them in ordinary memory, laid out as the whole.
    pub fn all(&self) -> Vec<f32> {
        if self.layout == self.whole {
            return to_vec(&self.flat);
        }
        let mut flat = vec![0.0; self.whole.flat_len()];
        for (spec, value) in self.whole.specs().iter().zip(&self.values) {
            flat[spec.offset..spec.offset + spec.len()].copy_from_slice(&to_vec(value));
        }
        flat
    }

    /// Takes over the values of all of them.
    pub fn set(&mut self, all: &[f32]) {
        let all = Tensor::from_slice(all);
        tch::no_grad(|| {
            for (value, new) in self.values.iter_mut().zip(views(&self.whole, &all)) {
                value.copy_(&new);
            }
        });
    }

    /// Matrix and bias of a layer: parameters `2·layer` and the next.
    pub fn layer(&self, layer: usize) -> [&Tensor; 2] {
        [&self.values[2 * layer], &self.values[2 * layer + 1]]
    }

    /// `input · Wᵀ + b` of a layer; `input` is `[… × features]`, its rows belong to so many examples.
    pub fn linear(
        &self,
        layer: usize,
        input: &Tensor,
        examples: i64,
        tape: &mut Option<&mut Tape>,
    ) -> Tensor {
        let [weight, bias] = self.layer(layer);
        let output = input.linear(weight, Some(bias));
        if let Some(tape) = tape {
            match (self.trained[2 * layer], self.trained[2 * layer + 1]) {
                (Some(weight), bias) => {
                    tape.note(Use::linear(weight, bias, 0, input, examples), &output);
                }
                (None, Some(bias)) => tape.note(Use::Bias { bias, first_row: 0 }, &output),
                (None, None) => {}
            }
        }
        output
    }

    /// Layers one after the other with an activation between them, on rows of one example each.
    pub fn dense(
        &self,
        layers: Range<usize>,
        input: Tensor,
        activate: impl Fn(&Tensor) -> Tensor,
        tape: &mut Option<&mut Tape>,
    ) -> Tensor {
        let last = layers.end - 1;
        let mut rows = input;
        for layer in layers {
            let examples = rows.size()[0];
            rows = self.linear(layer, &rows, examples, tape);
            if layer < last {
                rows = activate(&rows);
            }
        }
        rows
    }
}

/// Views of a flat buffer, one per parameter.
pub(super) fn views(layout: &Layout, flat: &Tensor) -> Vec<Tensor> {
    let view = |spec: &ParameterSpec| {
        let shape: Vec<i64> = spec.shape.iter().map(|&length| length as i64).collect();
        flat.narrow(0, spec.offset as i64, spec.len() as i64)
            .view(&shape[..])
    };
    layout.specs().iter().map(view).collect()
}

/// All values as 32-bit floats.
pub(super) fn to_vec(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor
        .detach()
        .to_device(Device::Cpu)
        .to_kind(Kind::Float)
        .contiguous();
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.copy_data(&mut values, count);
    values
}
