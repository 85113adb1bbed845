//! The parameters of a model outside LibTorch: names, shapes, values, fingerprint and file form.

use crate::decoder::{Adapters, Decoder, Places, Structure, layout};
use crate::hugging_face::{Config, ConfigError};
use crate::images::ImageArchitecture;
use crate::reading::Reading;
use crate::settings::{ModelSettings, SettingsError, TokenizedExample, TokensError, check_dropout};
use crate::trainable::Trainable;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use simfluence_core::{Artifact, ArtifactError, Tensor};

/// Version of the weights file.
const FORMAT_VERSION: u32 = 1;

/// Metadata of a file that holds the trained parameters only: fingerprint of the model that has the
/// others.
const BASE_MODEL: &str = "base_model";

/// What the names of parameters start with in a file that a run resumes from.
const IN_STATE: &str = "weights/";

/// Offsets of the parameters are multiples of this many values (64 bytes of f32), so that every
/// parameter is aligned for vector instructions.
const ALIGNMENT: usize = 16;

/// What fixes the shapes of a model and what it computes, besides the values of its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredArchitecture", into = "StoredArchitecture")]
pub struct Architecture {
    origin: Origin,
    trainable: Trainable,
    body: Body,
}

/// What the model is made of.
#[derive(Debug, Clone, PartialEq)]
enum Body {
    Decoder(Box<Decoder>),
    Images(ImageArchitecture),
}

/// How an architecture stands in files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredArchitecture {
    #[serde(flatten)]
    origin: Origin,
    #[serde(default, skip_serializing_if = "is_full")]
    trainable: Trainable,
}

fn is_full(trainable: &Trainable) -> bool {
    *trainable == Trainable::Full
}

/// What a model was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Origin {
    Settings {
        model: ModelSettings,
        vocabulary: u32,
    },
    HuggingFace {
        config: Config,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dropout: Option<f64>,
    },
    Images {
        images: ImageArchitecture,
    },
}

impl TryFrom<StoredArchitecture> for Architecture {
    type Error = ArchitectureError;

    fn try_from(stored: StoredArchitecture) -> Result<Self, ArchitectureError> {
        let architecture = match stored.origin {
            Origin::Settings { model, vocabulary } => Self::new(model, vocabulary)?,
            Origin::HuggingFace { config, dropout } => Self::of_config(config, dropout)?,
            Origin::Images { images } => Self::of_images(images),
        };
        Ok(architecture.with_trainable(stored.trainable)?)
    }
}

impl From<Architecture> for StoredArchitecture {
    fn from(architecture: Architecture) -> Self {
        Self {
            origin: architecture.origin,
            trainable: architecture.trainable,
        }
    }
}

/// Why there is no such architecture.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ArchitectureError {
    /// Impossible settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A `config.json` that is not understood.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Architecture {
    /// The architecture of the models that are pre-trained here: pre-norm blocks with learned
    /// positions and a GELU MLP of four times the width.
    ///
    /// # Errors
    /// See [`ModelSettings::check`]; a vocabulary of 0.
    ///
    /// # Reference
    /// Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3.
    pub fn new(model: ModelSettings, vocabulary: u32) -> Result<Self, SettingsError> {
        model.check()?;
        if vocabulary == 0 {
            return Err(SettingsError::Zero {
                setting: "vocabulary",
            });
        }
        Ok(Self {
            body: Body::Decoder(Box::new(model.decoder(vocabulary))),
            trainable: Trainable::Full,
            origin: Origin::Settings { model, vocabulary },
        })
    }

    /// The architecture that a `config.json` describes; `dropout`, in `[0, 1)`, replaces all the
    /// probabilities of dropout that stand there.
    ///
    /// # Errors
    /// See [`ConfigError`]; a probability out of range.
    pub fn of_config(config: Config, dropout: Option<f64>) -> Result<Self, ArchitectureError> {
        let mut decoder = config.decoder()?;
        if let Some(probability) = dropout {
            check_dropout(probability)?;
            decoder.dropout = decoder.structure.dropout(probability);
        }
        Ok(Self {
            body: Body::Decoder(Box::new(decoder)),
            trainable: Trainable::Full,
            origin: Origin::HuggingFace { config, dropout },
        })
    }

    /// The architecture of a network on images.
    pub fn of_images(images: ImageArchitecture) -> Self {
        Self {
            body: Body::Images(images.clone()),
            trainable: Trainable::Full,
            origin: Origin::Images { images },
        }
    }

    /// The same model of which other parameters are trained; with [`Trainable::Lora`] or
    /// [`Trainable::Ia3`] it has adapters, else none.
    ///
    /// # Errors
    /// Settings out of range, or that this model has no parameters for.
    pub fn with_trainable(mut self, trainable: Trainable) -> Result<Self, SettingsError> {
        match &mut self.body {
            Body::Decoder(decoder) => {
                decoder.adapters = trainable.adapters(decoder)?;
                decoder.dropout.adapter = trainable.adapter_dropout();
            }
            Body::Images(images) => images.check_trainable(&trainable)?,
        }
        self.trainable = trainable;
        Ok(self)
    }

    /// Which parameters are trained.
    pub fn trainable(&self) -> &Trainable {
        &self.trainable
    }

    /// Whether each parameter of the layout is trained.
    pub(crate) fn chosen(&self) -> Vec<bool> {
        let decoder = match &self.body {
            Body::Decoder(decoder) => decoder,
            Body::Images(images) => return images.chosen(&self.trainable),
        };
        let (layout, places) = layout(decoder);
        let names: Vec<&str> = layout.specs().iter().map(|s| s.name.as_str()).collect();
        self.trainable.choose(decoder, &names, &places)
    }

    /// What a model of texts is made of.
    ///
    /// # Panics
    /// The architecture is a network on images ([`Architecture::images`]).
    pub fn decoder(&self) -> &Decoder {
        match &self.body {
            Body::Decoder(decoder) => decoder,
            Body::Images(_) => panic!("a network on images has no decoder"),
        }
    }

    /// What a network on images is made of; `None` of a model of texts.
    pub fn images(&self) -> Option<&ImageArchitecture> {
        match &self.body {
            Body::Decoder(_) => None,
            Body::Images(images) => Some(images),
        }
    }

    /// Tokens, or pixels, that the model reads at once.
    pub fn context(&self) -> usize {
        match &self.body {
            Body::Decoder(decoder) => decoder.context as usize,
            Body::Images(images) => images.size().pixels(),
        }
    }

    /// How the model takes examples in.
    pub fn reading(&self) -> Reading {
        let decoder = match &self.body {
            Body::Decoder(decoder) => decoder,
            Body::Images(images) => return Reading::Image(images.size()),
        };
        let context = decoder.context as usize;
        match decoder.structure {
            Structure::Causal => Reading::Text { context },
            Structure::EncoderDecoder { .. } => Reading::PromptAndAnswer { context },
            Structure::Classifier => Reading::Class {
                context,
                labels: decoder.labels.clone(),
            },
        }
    }

    /// Checks that the model can read an example.
    ///
    /// # Errors
    /// See [`TokenizedExample::check`]; of a network on images, an example that is no image of its
    /// size and classes.
    pub fn check(&self, example: &TokenizedExample) -> Result<(), TokensError> {
        match &self.body {
            Body::Decoder(decoder) => {
                let (vocabulary, context) = (decoder.vocabulary, decoder.context);
                match decoder.structure {
                    Structure::Causal => example.check(vocabulary, context),
                    Structure::EncoderDecoder { .. } => example.check_parts(vocabulary, context),
                    Structure::Classifier => {
                        example.check_class(vocabulary, context, decoder.labels.len() as u32)
                    }
                }
            }
            Body::Images(images) => images.check(example),
        }
    }

    /// The `config.json` of a model that came with one.
    pub fn config(&self) -> Option<&Config> {
        match &self.origin {
            Origin::Settings { .. } | Origin::Images { .. } => None,
            Origin::HuggingFace { config, .. } => Some(config),
        }
    }

    /// Number of values in all parameters.
    pub fn parameter_count(&self) -> usize {
        Layout::new(self).parameter_count()
    }

    /// Number of values in the parameters that are trained.
    pub fn trainable_count(&self) -> usize {
        let layout = Layout::new(self);
        (layout.specs().iter().zip(self.chosen()))
            .filter(|(_, is_chosen)| *is_chosen)
            .map(|(spec, _)| spec.len())
            .sum()
    }
}

/// One parameter: its name, shape and place in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Name, for example `layers.0.attention.output.weight`.
    pub name: String,
    /// Length per axis; a matrix is `[output × input]`.
    pub shape: Vec<usize>,
    /// First value in the flat buffer.
    pub offset: usize,
}

impl ParameterSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no value; no parameter of a checked architecture is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The parameters of an architecture in their fixed order, one after the other in a flat buffer
/// (with zeros between them, for alignment).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    specs: Vec<ParameterSpec>,
    flat_len: usize,
}

impl Layout {
    /// The layout of an architecture.
    pub fn new(architecture: &Architecture) -> Self {
        match &architecture.body {
            Body::Decoder(decoder) => layout(decoder).0,
            Body::Images(images) => images.layout(),
        }
    }

    /// The layout of parameters with these names and shapes.
    pub fn of(parameters: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut layout = Self::default();
        for (name, shape) in parameters {
            layout.push(name, shape);
        }
        layout
    }

    /// Puts a parameter behind the others; gives its position among them.
    pub(crate) fn push(&mut self, name: String, shape: Vec<usize>) -> usize {
        let spec = ParameterSpec {
            name,
            shape,
            offset: self.flat_len,
        };
        self.flat_len = (spec.offset + spec.len()).next_multiple_of(ALIGNMENT);
        self.specs.push(spec);
        self.specs.len() - 1
    }

    /// The parameters in order.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Length of the flat buffer, gaps included.
    pub fn flat_len(&self) -> usize {
        self.flat_len
    }

    /// Number of values in the parameters.
    pub fn parameter_count(&self) -> usize {
        self.specs.iter().map(ParameterSpec::len).sum()
    }
}

/// The values of all parameters of a model, as 32-bit floats in ordinary memory: what runs start
/// from, what checkpoints hold, and what threads share.
///
/// ```
/// use simfluence_models::{Architecture, ModelSettings, Weights};
/// let settings = ModelSettings { layers: 1, width: 8, heads: 2, context: 16, ..Default::default() };
/// let weights = Weights::random(&Architecture::new(settings, 30)?, 7);
/// let back = Weights::from_artifact(&weights.to_artifact())?;
/// assert_eq!(back.fingerprint(), weights.fingerprint());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    architecture: Architecture,
    layout: Layout,
    flat: Vec<f32>,
}

impl Weights {
    /// Random initial weights, drawn from ChaCha8 with `seed` only: matrices, kernels included,
    /// `N(0, 1/(3·fan-in))`, those of a decoder that write to the residual stream divided by `√(2·layers)`,
    /// embeddings `N(0, 0.02²)`, norms 1, biases 0.
    ///
    /// # Reference
    /// Radford et al. 2019, section 2.3 (the scale of the residual layers).
    pub fn random(architecture: &Architecture, seed: u64) -> Self {
        let (layout, initial) = match &architecture.body {
            Body::Decoder(decoder) => {
                let (layout, places) = layout(decoder);
                let initial = initial_values(&layout, &places);
                (layout, initial)
            }
            Body::Images(images) => {
                let layout = images.layout();
                let initial = matrices_and_biases(&layout);
                (layout, initial)
            }
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut flat = vec![0.0; layout.flat_len()];
        for (spec, initial) in layout.specs().iter().zip(initial) {
            let values = &mut flat[spec.offset..spec.offset + spec.len()];
            match initial {
                Initial::Constant(value) => values.fill(value),
                Initial::Normal(deviation) => values.iter_mut().for_each(|v| {
                    let normal: f64 = StandardNormal.sample(&mut rng);
                    *v = (deviation * normal) as f32;
                }),
            }
        }
        Self {
            architecture: architecture.clone(),
            layout,
            flat,
        }
    }

    /// Weights from a flat buffer in the order of [`Layout`].
    ///
    /// # Errors
    /// A buffer of another length.
    pub fn from_flat(architecture: &Architecture, flat: Vec<f32>) -> Result<Self, WeightsError> {
        let layout = Layout::new(architecture);
        if flat.len() != layout.flat_len() {
            return Err(WeightsError::Length {
                expected: layout.flat_len(),
                got: flat.len(),
            });
        }
        Ok(Self {
            architecture: architecture.clone(),
            layout,
            flat,
        })
    }

    /// The same values in a model of which other parameters are trained. Adapters that the model
    /// did not have start from a random `A` and a `B` of 0, factors from 1, so that it computes what it
    /// did.
    ///
    /// # Errors
    /// See [`Architecture::with_trainable`].
    ///
    /// # Reference
    /// The start of `A` is that of PEFT: uniform in `±1/√(input width)`.
    pub fn with_trainable(&self, trainable: Trainable) -> Result<Self, SettingsError> {
        let architecture = self.architecture.clone().with_trainable(trainable)?;
        let layout = Layout::new(&architecture);
        let mut flat = vec![0.0; layout.flat_len()];
        let seed = match &architecture.trainable {
            Trainable::Lora(lora) => lora.seed,
            _ => 0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for spec in layout.specs() {
            let values = &mut flat[spec.offset..spec.offset + spec.len()];
            match self.parameter(&spec.name) {
                Some(known) if known.len() == values.len() => values.copy_from_slice(known),
                _ if spec.name.ends_with(".lora_A.weight") => {
                    let bound = (spec.shape[1] as f64).sqrt().recip();
                    for value in values {
                        *value = (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
                    }
                }
                _ if spec.name.ends_with(".ia3_l") => values.fill(1.0),
                _ => {}
            }
        }
        Ok(Self {
            architecture,
            layout,
            flat,
        })
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Names, shapes and places of the parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All values in the order of [`Layout`], gaps included.
    pub fn flat(&self) -> &[f32] {
        &self.flat
    }

    /// The values of one parameter.
    pub fn parameter(&self, name: &str) -> Option<&[f32]> {
        let spec = self.layout.specs().iter().find(|s| s.name == name)?;
        Some(&self.flat[spec.offset..spec.offset + spec.len()])
    }

    /// SHA-256 (hexadecimal) over the names, shapes and bits of all parameters and what else
    /// decides what the model computes: equal exactly when two models are the same.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        match &self.architecture.origin {
            Origin::Settings { model, .. } => hash.update(format!("heads {}", model.heads)),
            Origin::HuggingFace { config, .. } => hash.update(config.essence()),
            // Besides the shapes of the parameters.
            Origin::Images { images } => {
                hash.update(format!("images {} {:?}", images.size(), images.settings()))
            }
        }
        if let Body::Decoder(decoder) = &self.architecture.body
            && let Some(Adapters::Lora(lora)) = &decoder.adapters
        {
            hash.update(format!("\nadapters times {}", lora.scale));
        }
        for spec in self.layout.specs() {
            hash.update(format!("\n{} {:?}\n", spec.name, spec.shape));
            for value in &self.flat[spec.offset..spec.offset + spec.len()] {
                hash.update(value.to_le_bytes());
            }
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The weights as an artifact: one array per parameter, the architecture as metadata.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = Artifact::new("weights", FORMAT_VERSION);
        artifact.set_json("architecture", &self.architecture);
        self.write_chosen(&mut artifact, "", &vec![true; self.layout.specs().len()]);
        artifact
    }

    /// Reads the artifact back, bit for bit.
    ///
    /// # Errors
    /// Another kind of file, an impossible architecture, a parameter that is absent or of
    /// another shape.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, WeightsError> {
        artifact.expect("weights", FORMAT_VERSION)?;
        let architecture: Architecture = artifact.json("architecture")?;
        Self::read_tensors(&architecture, artifact, "")
    }

    /// The parameters in what a run resumes from (a file of kind `training_state`), without the
    /// optimiser's state: what attribution needs, and at most a third of the size.
    ///
    /// # Errors
    /// Another kind of file.
    pub fn without_optimizer(state: Artifact) -> Result<Artifact, WeightsError> {
        state.expect("training_state", FORMAT_VERSION)?;
        let mut artifact = Artifact::new("weights", FORMAT_VERSION);
        for name in ["architecture", BASE_MODEL] {
            if let Some(text) = state.metadata.get(name) {
                artifact.metadata.insert(name.to_owned(), text.clone());
            }
        }
        for (name, tensor) in state.tensors {
            if let Some(name) = name.strip_prefix(IN_STATE) {
                artifact.tensors.insert(name.to_owned(), tensor);
            }
        }
        Ok(artifact)
    }

    /// The model in a checkpoint of a run, which may also be what the run resumes from (a file of
    /// kind `training_state`). `base` is the model that the run started from; it is asked for
    /// where the file holds the trained parameters only.
    ///
    /// # Errors
    /// As [`Weights::from_artifact`]; another base model than the run's; what `base` fails with.
    pub fn from_checkpoint<E: From<WeightsError>>(
        artifact: &Artifact,
        base: impl FnOnce() -> Result<Self, E>,
    ) -> Result<Self, E> {
        let kind = artifact.metadata.get("kind").map(String::as_str);
        let (kind, prefix) = match kind {
            Some("training_state") => ("training_state", IN_STATE),
            _ => ("weights", ""),
        };
        let expected = artifact.expect(kind, FORMAT_VERSION);
        expected.map_err(WeightsError::from)?;
        let architecture: Architecture =
            artifact.json("architecture").map_err(WeightsError::from)?;
        let wanted = artifact.metadata.get(BASE_MODEL);
        let Some(wanted) = wanted else {
            return Ok(Self::read_tensors(&architecture, artifact, prefix)?);
        };
        let base = base()?;
        let got = base.fingerprint();
        if got != *wanted || base.architecture != architecture {
            let expected = wanted.clone();
            return Err(WeightsError::Base { expected, got }.into());
        }
        let mut weights = base;
        weights.read_trained(artifact, prefix)?;
        Ok(weights)
    }

    /// Adds the trained parameters to what a run resumes from; if there are others, also that they
    /// are those of the model with the fingerprint `base`.
    #[cfg_attr(not(feature = "torch"), allow(dead_code))]
    pub(crate) fn write_trained(&self, artifact: &mut Artifact, base: &str) {
        let chosen = self.architecture.chosen();
        if !chosen.iter().all(|&is_trained| is_trained) {
            artifact.metadata.insert(BASE_MODEL.into(), base.to_owned());
        }
        self.write_chosen(artifact, IN_STATE, &chosen);
    }

    /// Adds one array per chosen parameter, named `prefix` + the parameter's name.
    fn write_chosen(&self, artifact: &mut Artifact, prefix: &str, chosen: &[bool]) {
        let specs = self.layout.specs().iter().zip(chosen);
        for (spec, _) in specs.filter(|(_, is_chosen)| **is_chosen) {
            let tensor = Tensor::F32 {
                shape: spec.shape.clone(),
                values: self.flat[spec.offset..spec.offset + spec.len()].to_vec(),
            };
            artifact
                .tensors
                .insert(format!("{prefix}{}", spec.name), tensor);
        }
    }

    /// Reads what [`Weights::write_tensors`] wrote.
    fn read_tensors(
        architecture: &Architecture,
        artifact: &Artifact,
        prefix: &str,
    ) -> Result<Self, WeightsError> {
        let layout = Layout::new(architecture);
        let mut flat = vec![0.0; layout.flat_len()];
        for spec in layout.specs() {
            let values = artifact.f32s(&format!("{prefix}{}", spec.name), &spec.shape)?;
            flat[spec.offset..spec.offset + spec.len()].copy_from_slice(values);
        }
        Ok(Self {
            architecture: architecture.clone(),
            layout,
            flat,
        })
    }

    /// Replaces the trained parameters by those of a file.
    fn read_trained(&mut self, artifact: &Artifact, prefix: &str) -> Result<(), WeightsError> {
        for (spec, is_trained) in self.layout.specs().iter().zip(self.architecture.chosen()) {
            if is_trained {
                let values = artifact.f32s(&format!("{prefix}{}", spec.name), &spec.shape)?;
                self.flat[spec.offset..spec.offset + spec.len()].copy_from_slice(values);
            }
        }
        Ok(())
    }
}

enum Initial {
    Constant(f32),
    Normal(f64),
}

/// Matrices from a normal distribution, everything else from 0.
fn matrices_and_biases(layout: &Layout) -> Vec<Initial> {
    (layout.specs().iter())
        .map(|spec| match spec.shape[..] {
            [_, fan_in] => Initial::Normal(1.0 / (3.0 * fan_in as f64).sqrt()),
            _ => Initial::Constant(0.0),
        })
        .collect()
}

/// What each parameter of a decoder starts from.
fn initial_values(layout: &Layout, places: &Places) -> Vec<Initial> {
    let specs = layout.specs();
    let mut initial = matrices_and_biases(layout);
    let embeddings = [places.token_embedding, places.output.weight];
    let relative = places.stacks().filter_map(|stack| stack.relative_bias);
    let others = (places.position_embedding.into_iter()).chain(places.token_types);
    for index in embeddings.into_iter().chain(others).chain(relative) {
        initial[index] = Initial::Normal(0.02);
    }
    for stack in places.stacks() {
        let depth = (2.0 * stack.layers.len() as f64).sqrt();
        for layer in &stack.layers {
            let cross = layer.cross.map(|cross| cross.output);
            for written in [layer.attention_output, layer.mlp.down]
                .into_iter()
                .chain(cross)
            {
                let fan_in = specs[written.weight].shape[1] as f64;
                initial[written.weight] = Initial::Normal(1.0 / (3.0 * fan_in).sqrt() / depth);
            }
        }
    }
    for norm in places.norms() {
        initial[norm.weight] = Initial::Constant(1.0);
    }
    initial
}

/// What is wrong with weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// A flat buffer of another length.
    #[error("{got} values for a model whose parameters take {expected}")]
    Length {
        /// Values of the layout.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A checkpoint with the trained parameters only, and another base model.
    #[error(
        "the checkpoint holds the trained parameters only; the others are those of the base model with fingerprint {expected}, but this one has {got}"
    )]
    Base {
        /// Fingerprint of the run's base model.
        expected: String,
        /// That of the model given.
        got: String,
    },
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture(tied_output: bool) -> Architecture {
        let model = ModelSettings {
            layers: 2,
            heads: 2,
            width: 8,
            context: 5,
            tied_output,
            dropout: 0.0,
        };
        Architecture::new(model, 11).unwrap()
    }

    #[test]
    fn ref_the_parameter_count_is_that_of_the_formula() {
        // Embeddings (V + C) W; per layer 12 W² + 13 W; final norm 2 W; untied output V W.
        let expected = (11 + 5) * 8 + 2 * (12 * 64 + 13 * 8) + 16;
        assert_eq!(architecture(true).parameter_count(), expected);
        assert_eq!(architecture(false).parameter_count(), expected + 88);
    }

    #[test]
    fn weights_come_back_bit_identical() {
        let weights = Weights::random(&architecture(false), 3);
        let bytes = weights.to_artifact().to_bytes().unwrap();
        let back = Weights::from_artifact(&Artifact::from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!(back, weights);
    }

    #[test]
    fn the_fingerprint_sees_one_changed_bit_and_the_seed() {
        let weights = Weights::random(&architecture(true), 3);
        let mut flat = weights.flat().to_vec();
        flat[17] = f32::from_bits(flat[17].to_bits() ^ 1);
        let changed = Weights::from_flat(&architecture(true), flat).unwrap();
        assert_ne!(changed.fingerprint(), weights.fingerprint());
        assert_ne!(
            Weights::random(&architecture(true), 4).fingerprint(),
            weights.fingerprint()
        );
        assert_eq!(Weights::random(&architecture(true), 3), weights);
    }

    #[test]
    fn parameters_start_at_aligned_places_and_do_not_overlap() {
        let layout = Layout::new(&architecture(false));
        for pair in layout.specs().windows(2) {
            assert!(pair[0].offset + pair[0].len() <= pair[1].offset);
            assert!(pair[1].offset.is_multiple_of(ALIGNMENT));
        }
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let mut artifact = Weights::random(&architecture(true), 3).to_artifact();
        artifact.tensors.remove("layers.1.mlp.up.bias");
        let message = Weights::from_artifact(&artifact).unwrap_err().to_string();
        assert!(message.contains("layers.1.mlp.up.bias"), "{message}");
    }

    #[test]
    fn checkpoints_hold_the_trained_parameters_and_name_the_model_that_has_the_others() {
        let whole = Weights::random(&architecture(false), 3);
        let (last, all) = (Trainable::LastLayers { layers: 1 }, Trainable::Full);
        for (trainable, is_whole) in [(last, false), (all, true)] {
            let base = whole.with_trainable(trainable).unwrap();
            let chosen = base.architecture.chosen();
            let mut trained = base.clone();
            for (spec, _) in base.layout.specs().iter().zip(&chosen).filter(|(_, c)| **c) {
                trained.flat[spec.offset] += 1.0;
            }
            let mut state = Artifact::new("training_state", FORMAT_VERSION);
            state.set_json("architecture", &trained.architecture);
            trained.write_trained(&mut state, &base.fingerprint());
            let file = Weights::without_optimizer(state.clone()).unwrap();
            let count = chosen.iter().filter(|chosen| **chosen).count();
            assert_eq!(file.tensors.len(), count);
            assert_eq!(count == chosen.len(), is_whole);
            for artifact in [&state, &file] {
                let read = |base: &Weights| {
                    Weights::from_checkpoint(artifact, || Ok::<_, WeightsError>(base.clone()))
                };
                assert_eq!(read(&base).unwrap(), trained);
                let other = Weights::random(&architecture(false), 4);
                let other = other.with_trainable(base.architecture.trainable.clone());
                match read(&other.unwrap()) {
                    Ok(weights) => assert!(is_whole && weights == trained),
                    Err(error) => assert!(!is_whole && error.to_string().contains("fingerprint")),
                }
            }
        }
    }
}
