//! Which parameters of a model are trained.

use crate::decoder::{
    Adapters, Decoder, Ia3, LayerPlaces, Lora, NormKind, Places, Positions, QkvPlaces, Structure,
};
use crate::settings::{SettingsError, at_least_one, below_one};
use serde::{Deserialize, Serialize};

/// Which parameters are trained (`[trainable]` of a task file). Gradients, optimisers and
/// attribution see these parameters only.
///
/// ```
/// use simfluence_models::Trainable;
/// let trainable: Trainable = toml::from_str("method = \"lora\"\nrank = 4")?;
/// assert!(matches!(trainable, Trainable::Lora(settings) if settings.alpha == 16.0));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trainable {
    /// All of them.
    #[default]
    #[serde(deserialize_with = "no_settings")]
    Full,
    /// The biases, those of norms included; not those of keys where positions are learned and keys
    /// have a matrix of their own, because there they change nothing: every weight of a softmax is
    /// multiplied alike. Of a classifier also the matrix that the classes come from.
    ///
    /// # Reference
    /// Ben Zaken et al. 2022, "BitFit".
    #[serde(deserialize_with = "no_settings")]
    Bitfit,
    /// The last blocks (of a decoder behind an encoder, its own), the norm behind them, and the
    /// output matrix if it is not the token embedding.
    LastLayers {
        /// How many blocks, at least 1.
        layers: u32,
    },
    /// Matrices of low rank beside some of the model's own, which are frozen.
    Lora(LoraSettings),
    /// Factors of what some of the model's own matrices, which are frozen, give or read.
    Ia3(Ia3Settings),
}

/// A method without settings; `deny_unknown_fields` of the enumeration does not see to that.
fn no_settings<'de, D: serde::Deserializer<'de>>(settings: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(settings).map(|Nothing {}| ())
}

fn is_zero(probability: &f64) -> bool {
    *probability == 0.0
}

/// Settings of LoRA: `W x` becomes `W x + (alpha / rank) B A x`.
///
/// # Reference
/// Hu et al. 2021, "LoRA: low-rank adaptation of large language models".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSettings {
    /// Rank of `B A`, default 8, at least 1.
    pub rank: u32,
    /// Scale, default 16, above 0.
    pub alpha: f64,
    /// Ends of the names of the matrices that are adapted (`q_proj`, `mlp.c_proj`); default: those
    /// of queries and values, or the matrix that holds them.
    pub targets: Option<Vec<String>>,
    /// Probability of dropout of what `A` reads, in `[0, 1)`, default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// Seed of `A`, uniform in `±1/√(input width)`, default 0; `B` starts from 0.
    pub seed: u64,
    /// Whether the matrix and the bias that a classifier's classes come from are trained, too,
    /// default true; without effect on other models.
    pub classifier: bool,
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: None,
            dropout: 0.0,
            seed: 0,
            classifier: true,
        }
    }
}

/// Settings of (IA)³: `W x + b` becomes `l ∘ (W x + b)`, or `W (l ∘ x) + b` of the matrices of
/// `feedforward`; `l` starts from 1.
///
/// # Reference
/// Liu et al. 2022, "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context
/// learning", section 3.3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ia3Settings {
    /// Ends of the names of the matrices that have factors; default: those of keys and values, or
    /// the matrix that holds them, and the last of the MLP.
    pub targets: Option<Vec<String>>,
    /// Ends of the names of those among them whose input is multiplied; default: the last of the
    /// MLP, which reads its inner activations.
    pub feedforward: Option<Vec<String>>,
    /// As [`LoraSettings::classifier`].
    pub classifier: bool,
}

impl Default for Ia3Settings {
    fn default() -> Self {
        Self {
            targets: None,
            feedforward: None,
            classifier: true,
        }
    }
}

impl Trainable {
    /// Whether the matrix that a classifier's classes come from is trained beside other parameters.
    pub(crate) fn has_classifier(&self, decoder: &Decoder) -> bool {
        let is_wanted = match self {
            Self::Full | Self::LastLayers { .. } => false,
            Self::Bitfit => true,
            Self::Lora(settings) => settings.classifier,
            Self::Ia3(settings) => settings.classifier,
        };
        is_wanted && decoder.structure == Structure::Classifier
    }

    /// What a decoder needs for it besides its own parameters.
    ///
    /// # Errors
    /// Settings out of range, or that the decoder has nothing for.
    pub(crate) fn adapters(&self, decoder: &Decoder) -> Result<Option<Adapters>, SettingsError> {
        let nothing = |problem: String| Err(SettingsError::Trainable { problem });
        match self {
            Self::Full => Ok(None),
            Self::Bitfit => {
                let attention = &decoder.attention;
                let has_bias = attention.has_bias
                    || attention.has_output_bias
                    || decoder.mlp.has_bias
                    || decoder.norm.kind == NormKind::LayerNorm;
                match has_bias {
                    true => Ok(None),
                    false => nothing("bitfit trains biases, and this model has none".into()),
                }
            }
            Self::LastLayers { layers } => {
                at_least_one("trainable.layers", *layers)?;
                if *layers > decoder.layers {
                    return nothing(format!(
                        "trainable.layers is {layers}, and this model has {} blocks",
                        decoder.layers
                    ));
                }
                Ok(None)
            }
            Self::Lora(settings) => Ok(Some(Adapters::Lora(settings.adapters(decoder)?))),
            Self::Ia3(settings) => Ok(Some(Adapters::Ia3(settings.adapters(decoder)?))),
        }
    }

    /// Probability of dropout of what low-rank adapters read.
    pub(crate) fn adapter_dropout(&self) -> f64 {
        match self {
            Self::Lora(settings) => settings.dropout,
            Self::Full | Self::Bitfit | Self::LastLayers { .. } | Self::Ia3(_) => 0.0,
        }
    }

    /// Whether each parameter of the layout is trained.
    pub(crate) fn choose(&self, decoder: &Decoder, names: &[&str], places: &Places) -> Vec<bool> {
        let mut chosen = vec![false; names.len()];
        match self {
            Self::Full => chosen.fill(true),
            Self::Bitfit => {
                for (chosen, name) in chosen.iter_mut().zip(names) {
                    *chosen = name.ends_with(".bias");
                }
                let is_learned = matches!(decoder.positions, Positions::Learned { .. });
                for layer in places.stack.layers.iter().filter(|_| is_learned) {
                    if let QkvPlaces::Separate([_, key, _]) = layer.qkv
                        && let Some(bias) = key.bias
                    {
                        chosen[bias] = false;
                    }
                }
            }
            Self::LastLayers { layers } => {
                let all = &places.stack.layers;
                // Everything behind the first of these blocks stands behind it in the layout, too.
                let start = all[all.len() - *layers as usize].attention_norm.weight;
                chosen[start..].fill(true);
            }
            Self::Lora(_) | Self::Ia3(_) => {
                let layers = places.stacks().flat_map(|stack| &stack.layers);
                let linear = layers.flat_map(LayerPlaces::matrices);
                for adapter in linear.filter_map(|linear| linear.adapter) {
                    for &index in adapter.parameters() {
                        chosen[index] = true;
                    }
                }
            }
        }
        if self.has_classifier(decoder) {
            let output = places.output;
            for index in std::iter::once(output.weight).chain(output.bias) {
                chosen[index] = true;
            }
        }
        chosen
    }
}

impl LoraSettings {
    fn adapters(&self, decoder: &Decoder) -> Result<Lora, SettingsError> {
        at_least_one("trainable.rank", self.rank)?;
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(SettingsError::Range {
                setting: "trainable.alpha",
                expected: "positive and finite",
                got: self.alpha,
            });
        }
        below_one("trainable.dropout", self.dropout)?;
        let names = &decoder.names;
        let end = |name: &str| end_of(name, decoder);
        let targets = match (&self.targets, names.qkv) {
            (Some(targets), _) => targets.clone(),
            (None, "") => vec![end(names.query), end(names.value)],
            (None, qkv) => vec![end(qkv)],
        };
        check_targets("trainable.targets", &targets, decoder)?;
        Ok(Lora {
            rank: self.rank,
            scale: self.alpha / f64::from(self.rank),
            targets,
        })
    }
}

impl Ia3Settings {
    fn adapters(&self, decoder: &Decoder) -> Result<Ia3, SettingsError> {
        let names = &decoder.names;
        let end = |name: &str| end_of(name, decoder);
        let targets = match (&self.targets, names.qkv) {
            (Some(targets), _) => targets.clone(),
            (None, "") => vec![end(names.key), end(names.value), end(names.down)],
            (None, qkv) => vec![end(qkv), end(names.down)],
        };
        check_targets("trainable.targets", &targets, decoder)?;
        let feedforward = match &self.feedforward {
            Some(feedforward) => feedforward.clone(),
            None => vec![end(names.down)],
        };
        if !feedforward.is_empty() {
            check_targets("trainable.feedforward", &feedforward, decoder)?;
        }
        let reaches = |end: &String, name: &str| is_named(name, end);
        let is_target = |name: &str| targets.iter().any(|target| reaches(target, name));
        let known = decoder.adaptable().concat();
        let stray = |end: &&String| {
            let mut named = known.iter().filter(|name| reaches(end, name));
            self.feedforward.is_some() && named.any(|name| !is_target(name))
        };
        match feedforward.iter().find(stray) {
            Some(end) => Err(SettingsError::Trainable {
                problem: format!(
                    "trainable.feedforward: {end:?} names a matrix that trainable.targets does not"
                ),
            }),
            None => Ok(Ia3 {
                targets,
                feedforward,
            }),
        }
    }
}

/// Fails unless there are ends of names, and each is that of a matrix of the blocks.
fn check_targets(setting: &str, ends: &[String], decoder: &Decoder) -> Result<(), SettingsError> {
    let known = decoder.adaptable();
    let is_known = |end: &String| known.concat().iter().any(|name| is_named(name, end));
    let problem = match ends.iter().find(|end| !is_known(end)) {
        None if ends.is_empty() => format!("{setting} names no matrix"),
        None => return Ok(()),
        Some(end) => format!(
            "{setting}: {end:?} is no matrix of this model; there are {}",
            (known
                .iter()
                .map(|names| end_of(names[0], decoder))
                .collect::<Vec<_>>())
            .join(", ")
        ),
    };
    Err(SettingsError::Trainable { problem })
}

/// Whether a name is `end`, or its last parts are.
pub(crate) fn is_named(name: &str, end: &str) -> bool {
    name.strip_suffix(end)
        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The shortest end of a matrix's name that no matrix with another task has: `q_proj`, but of
/// GPT-2, which has two `c_proj`, `mlp.c_proj`. Where only the block's number tells them apart it is
/// all that follows that, and names both: BERT's `output.dense`, as in PEFT.
fn end_of(name: &str, decoder: &Decoder) -> String {
    let known = decoder.adaptable();
    let starts = name.rmatch_indices('.').map(|(dot, _)| dot + 1);
    let mut ends = (starts.map(|start| &name[start..])).take_while(|end| !end.contains('{'));
    let has = |names: &&Vec<&str>, end: &str| names.iter().any(|name| is_named(name, end));
    let is_unique = |end: &&str| known.iter().filter(|names| has(names, end)).count() == 1;
    let behind_number = name.rsplit("{}.").next().unwrap_or(name);
    ends.find(is_unique).unwrap_or(behind_number).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ModelSettings;
    use crate::weights::{Architecture, Layout, Weights};

    fn architecture() -> Architecture {
        let model = ModelSettings {
            layers: 3,
            heads: 2,
            width: 8,
            context: 5,
            tied_output: false,
            dropout: 0.0,
        };
        Architecture::new(model, 11).unwrap()
    }

    fn trained(trainable: Trainable) -> Vec<String> {
        let architecture = architecture().with_trainable(trainable).unwrap();
        let layout = Layout::new(&architecture);
        (layout.specs().iter().zip(architecture.chosen()))
            .filter(|(_, is_chosen)| *is_chosen)
            .map(|(spec, _)| spec.name.clone())
            .collect()
    }

    fn lora(targets: &[&str]) -> Trainable {
        Trainable::Lora(LoraSettings {
            rank: 2,
            targets: Some(targets.iter().map(|t| (*t).to_owned()).collect()),
            ..LoraSettings::default()
        })
    }

    #[test]
    fn a_setting_that_the_method_does_not_have_is_refused() {
        let read = |text: &str| toml::from_str::<Trainable>(text);
        assert_eq!(read("method = \"full\"").unwrap(), Trainable::Full);
        assert_eq!(read("method = \"bitfit\"").unwrap(), Trainable::Bitfit);
        for (method, setting) in [
            ("full", "rank = 3"),
            ("bitfit", "layers = 3"),
            ("last-layers", "layers = 1\nrank = 3"),
            ("lora", "feedforward = []"),
            ("ia3", "rank = 3"),
        ] {
            let error = read(&format!("method = \"{method}\"\n{setting}")).unwrap_err();
            assert!(
                error.message().contains("unknown field"),
                "{method}: {error}"
            );
        }
    }

    #[test]
    fn each_way_of_training_chooses_its_parameters() {
        assert_eq!(trained(Trainable::Full).len(), 2 + 3 * 12 + 3);
        let biases = trained(Trainable::Bitfit);
        assert_eq!(biases.len(), 3 * 6 + 1);
        assert!(biases.iter().all(|name| name.ends_with(".bias")));
        let last = trained(Trainable::LastLayers { layers: 2 });
        assert_eq!(last.len(), 2 * 12 + 3);
        assert_eq!(last[0], "layers.1.attention_norm.weight");
        assert_eq!(last.last().unwrap(), "output.weight");
        let adapters = trained(lora(&["qkv", "down"]));
        assert_eq!(adapters.len(), 3 * 4);
        assert_eq!(adapters[3], "layers.0.mlp.down.lora_B.weight");
        assert_eq!(
            trained(Trainable::Lora(LoraSettings::default())).len(),
            3 * 2
        );
        let count = |t| architecture().with_trainable(t).unwrap().trainable_count();
        assert_eq!(count(lora(&["down"])), 3 * (2 * 32 + 8 * 2));
        assert_eq!(count(Trainable::Full), architecture().parameter_count());
    }

    #[test]
    fn factors_stand_beside_keys_values_and_the_last_of_the_mlp_and_start_from_one() {
        let ia3 = Trainable::Ia3(Ia3Settings::default());
        let names = trained(ia3.clone());
        assert_eq!(names.len(), 3 * 2);
        assert_eq!(names[0], "layers.0.attention.qkv.ia3_l");
        let base = Weights::random(&architecture(), 3);
        let adapted = base.with_trainable(ia3).unwrap();
        assert_eq!(adapted.architecture().trainable_count(), 3 * (24 + 32));
        for name in &names {
            let values = adapted.parameter(name).unwrap();
            assert!(values.iter().all(|v| *v == 1.0), "{name}");
        }
        let artifact = adapted.to_artifact();
        assert_eq!(Weights::from_artifact(&artifact).unwrap(), adapted);
        let settings = |targets: &[&str], feedforward: &[&str]| {
            let owned = |ends: &[&str]| Some(ends.iter().map(|t| (*t).to_owned()).collect());
            Trainable::Ia3(Ia3Settings {
                targets: owned(targets),
                feedforward: owned(feedforward),
                ..Ia3Settings::default()
            })
        };
        let outputs = base.with_trainable(settings(&["mlp.down"], &[])).unwrap();
        assert_eq!(outputs.architecture().trainable_count(), 3 * 8);
        let message = |targets: &[&str], feedforward: &[&str]| {
            let error = base.with_trainable(settings(targets, feedforward));
            error.unwrap_err().to_string()
        };
        let stray = message(&["qkv"], &["down"]);
        assert!(stray.contains("trainable.feedforward: \"down\""), "{stray}");
        let unknown = message(&["qkv"], &["fc2"]);
        assert!(
            unknown.contains("trainable.feedforward: \"fc2\""),
            "{unknown}"
        );
        assert!(message(&[], &[]).contains("targets names no matrix"));
    }

    #[test]
    fn adapters_start_without_effect_and_from_their_seed() {
        let base = Weights::random(&architecture(), 3);
        let adapted = base.with_trainable(lora(&["qkv"])).unwrap();
        for spec in adapted.layout().specs() {
            let values = adapted.parameter(&spec.name).unwrap();
            if spec.name.ends_with("lora_A.weight") {
                let bound = 1.0 / (spec.shape[1] as f32).sqrt();
                assert!(values.iter().all(|v| v.abs() <= bound && *v != 0.0));
            } else if spec.name.ends_with("lora_B.weight") {
                assert!(values.iter().all(|v| *v == 0.0));
            } else {
                assert_eq!(values, base.parameter(&spec.name).unwrap());
            }
        }
        assert_eq!(adapted, base.with_trainable(lora(&["qkv"])).unwrap());
        assert_ne!(adapted.fingerprint(), base.fingerprint());
        let artifact = adapted.to_artifact();
        assert_eq!(Weights::from_artifact(&artifact).unwrap(), adapted);
    }

    #[test]
    fn what_a_model_has_no_parameters_for_is_refused() {
        let message = |trainable| {
            let error = architecture().with_trainable(trainable).unwrap_err();
            error.to_string()
        };
        let layers = message(Trainable::LastLayers { layers: 4 });
        assert!(
            layers.contains("layers is 4, and this model has 3"),
            "{layers}"
        );
        let none = message(Trainable::LastLayers { layers: 0 });
        assert!(none.contains("trainable.layers is 0"), "{none}");
        let target = message(lora(&["q_proj"]));
        assert!(target.contains("\"q_proj\"") && target.contains("qkv, output, up, down"));
        assert!(message(lora(&[])).contains("names no matrix"));
        let rank = LoraSettings {
            rank: 0,
            ..LoraSettings::default()
        };
        assert!(message(Trainable::Lora(rank)).contains("trainable.rank is 0"));
        assert!(toml::from_str::<Trainable>("method = \"lora\"\nrnk = 2").is_err());
    }
}
