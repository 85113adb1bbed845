//! The optimisers, on the flat buffer of a model's parameters, exactly as PyTorch's.

use super::parameters::{to_vec, views};
use crate::weights::Layout;
use simfluence_core::{Artifact, ArtifactError, Optimizer};
use tch::{Device, Kind, Tensor};

/// Values that one thread takes at a time: LibTorch's own share of work (its `GRAIN_SIZE`), of which
/// six arrays, those of an update of Adam, are 768 KiB.
const BLOCK: i64 = 1 << 15;

/// An optimiser with its state.
///
/// All but Adafactor are elementwise and work on the flat buffer without a look at where parameters end; the gaps between
/// parameters are 0 in parameters, gradients and state, and stay 0.
///
/// # Reference
/// PyTorch 2.13, `torch.optim`: `sgd.py`, `rmsprop.py`, `adam.py`, `adamw.py`, `_adafactor.py`.
#[derive(Debug)]
pub(super) struct OptimizerState {
    optimizer: Optimizer,
    /// Finished updates.
    step: u32,
    /// What is kept from step to step, in the order of `buffer_names`.
    buffers: Vec<Tensor>,
    layout: Layout,
    /// Whether weight decay applies to each parameter.
    decayed: Vec<bool>,
    /// First value and length of the parts of the flat buffer that it applies to.
    decayed_parts: Vec<(i64, i64)>,
}

impl OptimizerState {
    /// The state before the first update; weight decay applies to the parameters of the layout
    /// that are `decayed`.
    pub(super) fn new(
        optimizer: Optimizer,
        layout: &Layout,
        decayed: Vec<bool>,
        kind: Kind,
        device: Device,
    ) -> Self {
        let buffers = buffer_shapes(&optimizer, layout)
            .into_iter()
            .map(|(_, length)| Tensor::zeros([length as i64], (kind, device)))
            .collect();
        Self {
            optimizer,
            step: 0,
            buffers,
            decayed_parts: parts(layout, &decayed),
            decayed,
            layout: layout.clone(),
        }
    }

    /// One update of `parameters` with `gradient` (used up) at learning rate `rate`.
    pub(super) fn update(&mut self, parameters: &mut Tensor, gradient: &mut Tensor, rate: f64) {
        self.step += 1;
        tch::no_grad(|| {
            match self.optimizer {
                Optimizer::Sgd { weight_decay, .. }
                | Optimizer::Rmsprop { weight_decay, .. }
                | Optimizer::Adam { weight_decay, .. } => {
                    self.add_decay(gradient, parameters, weight_decay);
                }
                Optimizer::Adamw { weight_decay, .. } => {
                    self.shrink(parameters, rate * weight_decay);
                }
                Optimizer::Adafactor { .. } => return self.adafactor(parameters, gradient, rate),
            }
            for (first, length) in blocks(parameters) {
                let part = |whole: &Tensor| whole.narrow(0, first, length);
                let mut buffers: Vec<Tensor> = self.buffers.iter().map(part).collect();
                let (parameters, gradient) = (part(parameters), part(gradient));
                self.update_block(parameters, gradient, &mut buffers, rate);
            }
        });
    }

    /// The elementwise update of some parameters next to each other.
    fn update_block(
        &self,
        mut parameters: Tensor,
        mut gradient: Tensor,
        buffers: &mut [Tensor],
        rate: f64,
    ) {
        match self.optimizer {
            Optimizer::Sgd {
                momentum,
                dampening,
                nesterov,
                ..
            } => {
                if let [velocity] = buffers {
                    self.momentum(velocity, &gradient, momentum, dampening);
                    match nesterov {
                        true => gradient += &*velocity * momentum,
                        false => gradient.copy_(velocity),
                    }
                }
                descend(&mut parameters, &mut gradient, rate);
            }
            Optimizer::Rmsprop {
                alpha,
                eps,
                momentum,
                ..
            } => {
                rmsprop(buffers, &mut gradient, alpha, eps, momentum);
                descend(&mut parameters, &mut gradient, rate);
            }
            Optimizer::Adam {
                beta1, beta2, eps, ..
            }
            | Optimizer::Adamw {
                beta1, beta2, eps, ..
            } => {
                let constants = [beta1, beta2, eps];
                self.adam(&mut parameters, &mut gradient, buffers, rate, constants);
            }
            Optimizer::Adafactor { .. } => unreachable!("it is not elementwise"),
        }
    }

    /// `g ← g + λ θ` for what is decayed.
    fn add_decay(&self, gradient: &Tensor, parameters: &Tensor, decay: f64) {
        if decay == 0.0 {
            return;
        }
        for &(first, length) in &self.decayed_parts {
            let mut part = gradient.narrow(0, first, length);
            part += parameters.narrow(0, first, length) * decay;
        }
    }

    /// `θ ← (1 − amount) θ` for what is decayed.
    fn shrink(&self, parameters: &Tensor, amount: f64) {
        for &(first, length) in &self.decayed_parts {
            shrink(&mut parameters.narrow(0, first, length), amount);
        }
    }

    /// `b ← μ b + (1 − d) g` (first step: `b = g`).
    fn momentum(&self, velocity: &mut Tensor, gradient: &Tensor, momentum: f64, dampening: f64) {
        if self.step == 1 {
            velocity.copy_(gradient);
        } else {
            let _ = velocity.g_mul_scalar_(momentum);
            *velocity += gradient * (1.0 - dampening);
        }
    }

    /// `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`, `θ ← θ − η m̂ / (√v̂ + ε)`.
    fn adam(
        &self,
        parameters: &mut Tensor,
        gradient: &mut Tensor,
        buffers: &mut [Tensor],
        rate: f64,
        [beta1, beta2, eps]: [f64; 3],
    ) {
        let [first, second] = buffers else {
            unreachable!("Adam keeps two moments");
        };
        let _ = first.lerp_(gradient, 1.0 - beta1);
        let _ = second.lerp_(&gradient.square_(), 1.0 - beta2);
        let step = f64::from(self.step);
        let correction1 = 1.0 - beta1.powf(step);
        let correction2 = (1.0 - beta2.powf(step)).sqrt();
        let scale = second.sqrt().g_div_scalar_(correction2).g_add_scalar_(eps);
        let direction = &*first * (-rate / correction1);
        let _ = parameters.addcdiv_(&direction, &scale);
    }

    /// Adafactor parameter by parameter: factored second moments for matrices.
    fn adafactor(&mut self, parameters: &Tensor, gradient: &Tensor, rate: f64) {
        let Optimizer::Adafactor {
            beta2_decay,
            eps1,
            eps2,
            d,
            weight_decay,
        } = self.optimizer
        else {
            unreachable!("called for Adafactor only");
        };
        let step = f64::from(self.step);
        let one_minus_beta2 = step.powf(beta2_decay);
        let step_rate = rate.min(1.0 / step.sqrt());
        let gradients = views(&self.layout, gradient);
        let mut second = self.buffers.iter_mut();
        let parameters = views(&self.layout, parameters).into_iter();
        for ((mut parameter, gradient), is_decayed) in parameters.zip(gradients).zip(&self.decayed)
        {
            let root_mean_square = rms(&parameter).max(eps2);
            if *is_decayed {
                shrink(&mut parameter, rate * weight_decay);
            }
            let mut next = || second.next().expect("a buffer per parameter or axis");
            let mut update = if parameter.dim() > 1 {
                let rows = next();
                let _ = rows.lerp_(&mean_square(&gradient, 1), one_minus_beta2);
                let columns = next();
                let _ = columns.lerp_(&mean_square(&gradient, 0), one_minus_beta2);
                let estimate = rows.unsqueeze(1).matmul(&columns.unsqueeze(0));
                estimate / rows.mean(None).clamp_min(eps1)
            } else {
                let variance = next();
                let _ = variance.lerp_(&gradient.square(), one_minus_beta2);
                variance.shallow_clone() * 1.0
            };
            let _ = update.clamp_min_(eps1 * eps1).rsqrt_().g_mul_(&gradient);
            let denominator = (rms(&update) / d).max(1.0);
            descend(
                &mut parameter,
                &mut update,
                step_rate * root_mean_square / denominator,
            );
        }
    }

    /// `1 / (√v̂ + ε)` of the optimisers that have it, after at least one update.
    pub(super) fn preconditioner(&self) -> Option<Tensor> {
        if self.step == 0 {
            return None;
        }
        let (second, correction, eps) = match self.optimizer {
            Optimizer::Adam { beta2, eps, .. } | Optimizer::Adamw { beta2, eps, .. } => {
                let correction = 1.0 - beta2.powf(f64::from(self.step));
                (&self.buffers[1], correction.sqrt(), eps)
            }
            Optimizer::Rmsprop { eps, .. } => (&self.buffers[0], 1.0, eps),
            Optimizer::Sgd { .. } | Optimizer::Adafactor { .. } => return None,
        };
        Some((second.sqrt() / correction + eps).reciprocal())
    }

    /// Adds the state as arrays `optimizer/…` and the number of finished updates.
    pub(super) fn write(&self, artifact: &mut Artifact) {
        artifact.set_json("optimizer", &self.optimizer);
        artifact.set_json("optimizer_step", &self.step);
        for ((name, length), buffer) in buffer_shapes(&self.optimizer, &self.layout)
            .into_iter()
            .zip(&self.buffers)
        {
            let tensor = simfluence_core::Tensor::F32 {
                shape: vec![length],
                values: to_vec(buffer),
            };
            artifact.tensors.insert(format!("optimizer/{name}"), tensor);
        }
    }

    /// Takes over the state that [`OptimizerState::write`] wrote for the same optimiser.
    pub(super) fn read(&mut self, artifact: &Artifact) -> Result<(), ArtifactError> {
        self.step = artifact.json("optimizer_step")?;
        let shapes = buffer_shapes(&self.optimizer, &self.layout);
        for ((name, length), buffer) in shapes.into_iter().zip(&mut self.buffers) {
            let values = artifact.f32s(&format!("optimizer/{name}"), &[length])?;
            buffer.copy_(&Tensor::from_slice(values));
        }
        Ok(())
    }
}

/// First value and length of the parts that a flat buffer is updated in. On a processor they are so
/// small that an update's operations, one after the other, find them in the cache.
fn blocks(flat: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let whole = flat.numel() as i64;
    let length = match flat.device() {
        Device::Cpu => BLOCK * i64::from(tch::get_num_threads().max(1)),
        _ => whole.max(1),
    };
    let firsts = (0..whole).step_by(length as usize);
    firsts.map(move |first| (first, length.min(whole - first)))
}

/// `v ← α v + (1 − α) g²`; leaves `g / (√v + ε)`, or its momentum, in `gradient`.
fn rmsprop(buffers: &mut [Tensor], gradient: &mut Tensor, alpha: f64, eps: f64, momentum: f64) {
    let _ = buffers[0].lerp_(&gradient.square(), 1.0 - alpha);
    let scale = buffers[0].sqrt().g_add_scalar_(eps);
    let _ = gradient.g_div_(&scale);
    if momentum > 0.0 {
        let velocity = &mut buffers[1];
        let _ = velocity.g_mul_scalar_(momentum).g_add_(gradient);
        gradient.copy_(velocity);
    }
}

/// Names and lengths of what an optimiser keeps.
fn buffer_shapes(optimizer: &Optimizer, layout: &Layout) -> Vec<(String, usize)> {
    let flat = |name: &str| (name.to_owned(), layout.flat_len());
    match optimizer {
        Optimizer::Sgd { momentum, .. } if *momentum == 0.0 => Vec::new(),
        Optimizer::Sgd { .. } => vec![flat("velocity")],
        Optimizer::Rmsprop { momentum, .. } if *momentum == 0.0 => vec![flat("second_moment")],
        Optimizer::Rmsprop { .. } => vec![flat("second_moment"), flat("velocity")],
        Optimizer::Adam { .. } | Optimizer::Adamw { .. } => {
            vec![flat("first_moment"), flat("second_moment")]
        }
        Optimizer::Adafactor { .. } => (layout.specs().iter())
            .flat_map(|spec| match spec.shape[..] {
                [rows, columns] => vec![
                    (format!("{}.rows", spec.name), rows),
                    (format!("{}.columns", spec.name), columns),
                ],
                _ => vec![(format!("{}.second_moment", spec.name), spec.len())],
            })
            .collect(),
    }
}

/// First value and length of the runs of neighbouring parameters that are decayed, with the gaps
/// behind them.
fn parts(layout: &Layout, decayed: &[bool]) -> Vec<(i64, i64)> {
    let mut parts: Vec<(i64, i64)> = Vec::new();
    let specs = layout.specs();
    let ends = specs.iter().skip(1).map(|next| next.offset);
    let ends = ends.chain([layout.flat_len()]);
    for ((spec, end), _) in (specs.iter().zip(ends).zip(decayed)).filter(|(_, is)| **is) {
        let (first, end) = (spec.offset as i64, end as i64);
        match parts.last_mut() {
            Some(last) if last.0 + last.1 == first => last.1 = end - last.0,
            _ => parts.push((first, end - first)),
        }
    }
    parts
}

/// `θ ← (1 − amount) θ`.
fn shrink(parameters: &mut Tensor, amount: f64) {
    if amount != 0.0 {
        let _ = parameters.g_mul_scalar_(1.0 - amount);
    }
}

/// `θ ← θ − rate · direction`; uses the direction up.
fn descend(parameters: &mut Tensor, direction: &mut Tensor, rate: f64) {
    let _ = parameters.g_add_(&direction.g_mul_scalar_(-rate));
}

fn rms(tensor: &Tensor) -> f64 {
    tensor.norm().double_value(&[]) / (tensor.numel() as f64).sqrt()
}

/// Mean of the squares along one axis of a matrix.
fn mean_square(gradient: &Tensor, axis: i64) -> Tensor {
    gradient.square().mean_dim(axis, false, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ModelSettings;
    use crate::weights::Architecture;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Case {
        optimizer: Optimizer,
        parameters: Vec<f64>,
    }

    fn layout() -> Layout {
        let model = ModelSettings {
            layers: 1,
            heads: 1,
            width: 2,
            context: 2,
            tied_output: true,
            dropout: 0.0,
        };
        Layout::new(&Architecture::new(model, 3).unwrap())
    }

    /// A flat buffer from a function of the position among all parameters.
    fn flat(layout: &Layout, value: impl Fn(f64) -> f64) -> Tensor {
        let mut values = vec![0.0; layout.flat_len()];
        let mut position = 0;
        for spec in layout.specs() {
            for slot in &mut values[spec.offset..spec.offset + spec.len()] {
                *slot = value(f64::from(position));
                position += 1;
            }
        }
        Tensor::from_slice(&values)
    }

    fn state(optimizer: Optimizer, layout: &Layout) -> OptimizerState {
        let decayed = vec![true; layout.specs().len()];
        OptimizerState::new(optimizer, layout, decayed, Kind::Double, Device::Cpu)
    }

    /// Numbers by `ref_optimizers.py` (PyTorch 2.13).
    #[test]
    fn ref_every_optimizer_makes_the_steps_of_torch_optim() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("ref_optimizers.json")).unwrap();
        let layout = layout();
        for case in cases {
            let mut parameters = flat(&layout, |k| (0.7 * k).cos());
            let mut state = state(case.optimizer, &layout);
            for t in 1..=12 {
                let t = f64::from(t);
                let mut gradient = flat(&layout, |k| (1.0 + k % 5.0) * (0.37 * k + 1.3 * t).sin());
                state.update(&mut parameters, &mut gradient, 0.05 / (1.0 + 0.1 * t));
            }
            let mut expected = case.parameters.iter();
            for (spec, view) in layout.specs().iter().zip(views(&layout, &parameters)) {
                for k in 0..spec.len() {
                    let got = view.contiguous().view(-1).double_value(&[k as i64]);
                    let want = expected.next().unwrap();
                    assert!(
                        (got - want).abs() < 1e-10,
                        "{:?} {} {k}: {got} {want}",
                        case.optimizer,
                        spec.name
                    );
                }
            }
            assert!(expected.next().is_none());
        }
    }

    /// Every parameter of a run with decay on some of them is bit for bit what it is in a run with
    /// decay on all, or on none.
    #[test]
    fn weight_decay_applies_to_the_chosen_parameters_only() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("ref_optimizers.json")).unwrap();
        let layout = layout();
        let count = layout.specs().len();
        for case in cases {
            let run = |decayed: &dyn Fn(usize) -> bool| {
                let mut parameters = flat(&layout, |k| (0.7 * k).cos());
                let decayed = (0..count).map(decayed).collect();
                let mut state = OptimizerState::new(
                    case.optimizer,
                    &layout,
                    decayed,
                    Kind::Double,
                    Device::Cpu,
                );
                for t in 1..=3 {
                    let t = f64::from(t);
                    let mut gradient = flat(&layout, |k| (0.37 * k + 1.3 * t).sin());
                    state.update(&mut parameters, &mut gradient, 0.05);
                }
                views(&layout, &parameters)
            };
            let [some, all, none] = [run(&|k| k % 3 != 1), run(&|_| true), run(&|_| false)];
            for k in 0..count {
                let expected = if k % 3 != 1 { &all[k] } else { &none[k] };
                assert!(some[k].equal(expected), "{:?} {k}", case.optimizer);
            }
        }
    }

    #[test]
    fn every_value_is_updated_once_however_many_blocks_there_are() {
        let length = 5 * BLOCK as usize * tch::get_num_threads() as usize + 7;
        let layout = Layout::of([("one".to_owned(), vec![length])]);
        let adamw = Optimizer::Adamw {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
        };
        let mut state = OptimizerState::new(adamw, &layout, vec![true], Kind::Float, Device::Cpu);
        let length = layout.flat_len() as i64;
        let mut parameters = Tensor::ones([length], (Kind::Float, Device::Cpu));
        for _ in 0..2 {
            let mut gradient = parameters.ones_like() * 0.5;
            state.update(&mut parameters, &mut gradient, 0.25);
        }
        // Both steps are one rate long: the bias-corrected moments are g and g².
        let expected = (0.975 - 0.25) * 0.975 - 0.25;
        let apart = (parameters - expected).abs().max().double_value(&[]);
        assert!(apart < 1e-6, "{apart}");
    }

    #[test]
    fn the_gaps_between_parameters_stay_zero() {
        let layout = layout();
        let mut parameters = flat(&layout, |_| 1.0);
        let mut state = state(Optimizer::default(), &layout);
        for _ in 0..3 {
            state.update(&mut parameters, &mut flat(&layout, |_| 0.5), 0.1);
        }
        let inside: f64 = views(&layout, &parameters)
            .iter()
            .map(|v| v.abs().sum(Kind::Double))
            .map(|s| s.double_value(&[]))
            .sum();
        let all = parameters.abs().sum(Kind::Double).double_value(&[]);
        assert!((inside - all).abs() < 1e-12 && inside > 0.0);
    }
}
