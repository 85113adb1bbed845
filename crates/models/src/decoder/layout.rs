//! The parameters of a decoder in their fixed order, and which of them each part uses.

use super::{Adapters, Decoder, Gate, NormKind, Positions, Projection};
use crate::trainable::is_named;
use crate::weights::Layout;

/// A linear layer's parameters, as positions in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// `[output × input]`.
    pub weight: usize,
    /// `[output]`.
    pub bias: Option<usize>,
    /// What stands beside it.
    pub adapter: Option<Adapter>,
}

/// The parameters of an adapter, as positions in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adapter {
    /// `A`, `[rank × input]`, and `B`, `[output × rank]`.
    LowRank([usize; 2]),
    /// Factors of the input, `[1 × input]`.
    Input(usize),
    /// Factors of the output, `[output × 1]`.
    Output(usize),
}

impl Adapter {
    /// All of them.
    pub fn parameters(&self) -> &[usize] {
        match self {
            Self::LowRank(both) => both,
            Self::Input(one) | Self::Output(one) => std::slice::from_ref(one),
        }
    }
}

/// A norm's parameters, as positions in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// The gain.
    pub weight: usize,
    /// The bias.
    pub bias: Option<usize>,
}

/// Where the parameters of each part stand in the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Token embedding, `[vocabulary × embedding width]`.
    pub token_embedding: usize,
    /// Learned positions, `[offset + context × width]`.
    pub position_embedding: Option<usize>,
    /// From the token embedding to the residual stream.
    pub project_in: Option<Linear>,
    /// The blocks.
    pub layers: Vec<LayerPlaces>,
    /// Norm behind the last block.
    pub final_norm: Option<Affine>,
    /// From the residual stream to the width of the token embedding.
    pub project_out: Option<Linear>,
    /// Output matrix, `[vocabulary × embedding width]`; the token embedding where it is tied.
    pub output: usize,
}

/// Where the parameters of a block stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlaces {
    /// Norm of the attention.
    pub attention_norm: Affine,
    /// Queries, keys and values.
    pub qkv: QkvPlaces,
    /// Output of the attention.
    pub attention_output: Linear,
    /// Norm of the MLP.
    pub mlp_norm: Affine,
    /// The MLP.
    pub mlp: MlpPlaces,
}

/// Queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvPlaces {
    /// In one matrix.
    Fused(Linear),
    /// In three.
    Separate([Linear; 3]),
}

/// The MLP of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpPlaces {
    /// The gate, where it is a matrix of its own.
    pub gate: Option<Linear>,
    /// The first matrix; with a fused gate both.
    pub up: Linear,
    /// The last matrix.
    pub down: Linear,
}

/// The layout of a decoder's parameters, and where each part's stand in it.
///
/// Blocks follow each other; within one: norm, queries-keys-values, output, norm, gate, up, down,
/// each matrix with its bias and its adapter right behind it.
pub fn layout(decoder: &Decoder) -> (Layout, Places) {
    let mut builder = Builder {
        decoder,
        layout: Layout::default(),
    };
    let places = builder.places();
    (builder.layout, places)
}

struct Builder<'a> {
    decoder: &'a Decoder,
    layout: Layout,
}

impl Builder<'_> {
    fn places(&mut self) -> Places {
        let (decoder, names) = (self.decoder, &self.decoder.names);
        let width = decoder.width as usize;
        let embedding = [
            decoder.vocabulary as usize,
            decoder.embedding_width as usize,
        ];
        let is_projected = decoder.embedding_width != decoder.width;
        let token_embedding = self.embedding(names.token_embedding, embedding);
        let position_embedding = match decoder.positions {
            Positions::Learned { offset } => {
                let rows = (offset + decoder.context) as usize;
                Some(self.embedding(names.position_embedding, [rows, width]))
            }
            Positions::Rotary(_) => None,
        };
        let project_in =
            is_projected.then(|| self.linear(names.project_in, [width, embedding[1]], false));
        let layers = (0..decoder.layers).map(|layer| self.layer(layer)).collect();
        let final_norm = (decoder.has_final_norm).then(|| self.norm(names.final_norm));
        let project_out =
            is_projected.then(|| self.linear(names.project_out, [embedding[1], width], false));
        let output = match decoder.tied_output {
            true => token_embedding,
            false => self.linear(names.output, embedding, false).weight,
        };
        Places {
            token_embedding,
            position_embedding,
            project_in,
            layers,
            final_norm,
            project_out,
            output,
        }
    }

    fn layer(&mut self, layer: u32) -> LayerPlaces {
        let (decoder, names) = (self.decoder, &self.decoder.names);
        let width = decoder.width as usize;
        let at = |name: &str| name.replace("{}", &layer.to_string());
        LayerPlaces {
            attention_norm: self.norm(&at(names.attention_norm)),
            qkv: self.qkv(&at),
            attention_output: {
                let attended = (decoder.attention.heads * decoder.attention.head_width) as usize;
                let has_bias = decoder.attention.has_output_bias;
                self.adaptable(&at(names.attention_output), [width, attended], has_bias)
            },
            mlp_norm: self.norm(&at(names.mlp_norm)),
            mlp: self.mlp(&at),
        }
    }

    fn qkv(&mut self, at: &dyn Fn(&str) -> String) -> QkvPlaces {
        let (attention, names) = (&self.decoder.attention, &self.decoder.names);
        let (width, has_bias) = (self.decoder.width as usize, attention.has_bias);
        let rows = |heads: u32| (heads * attention.head_width) as usize;
        let (queries, keys) = (rows(attention.heads), rows(attention.key_value_heads));
        match attention.projection {
            Projection::Fused | Projection::FusedByHead => {
                let shape = [queries + 2 * keys, width];
                QkvPlaces::Fused(self.adaptable(&at(names.qkv), shape, has_bias))
            }
            Projection::Separate => QkvPlaces::Separate([
                self.adaptable(&at(names.query), [queries, width], has_bias),
                self.adaptable(&at(names.key), [keys, width], has_bias),
                self.adaptable(&at(names.value), [keys, width], has_bias),
            ]),
        }
    }

    fn mlp(&mut self, at: &dyn Fn(&str) -> String) -> MlpPlaces {
        let (mlp, names) = (&self.decoder.mlp, &self.decoder.names);
        let (outer, inner) = (self.decoder.width as usize, mlp.width as usize);
        let (gate, up) = match mlp.gate {
            Gate::Absent => (
                None,
                self.adaptable(&at(names.up), [inner, outer], mlp.has_bias),
            ),
            Gate::Separate => {
                let gate = self.adaptable(&at(names.gate), [inner, outer], mlp.has_bias);
                let up = self.adaptable(&at(names.up), [inner, outer], mlp.has_bias);
                (Some(gate), up)
            }
            Gate::Fused => {
                let shape = [2 * inner, outer];
                (None, self.adaptable(&at(names.gate), shape, mlp.has_bias))
            }
        };
        let down = self.adaptable(&at(names.down), [outer, inner], mlp.has_bias);
        MlpPlaces { gate, up, down }
    }

    fn embedding(&mut self, name: &str, shape: [usize; 2]) -> usize {
        let suffix = if self.decoder.names.embeddings_have_suffix {
            ".weight"
        } else {
            ""
        };
        self.layout.push(format!("{name}{suffix}"), shape.into())
    }

    fn linear(&mut self, name: &str, shape: [usize; 2], has_bias: bool) -> Linear {
        Linear {
            weight: self.layout.push(format!("{name}.weight"), shape.into()),
            bias: has_bias.then(|| self.layout.push(format!("{name}.bias"), vec![shape[0]])),
            adapter: None,
        }
    }

    /// A matrix of a block, with its adapter if it has one.
    fn adaptable(&mut self, name: &str, shape: [usize; 2], has_bias: bool) -> Linear {
        let mut linear = self.linear(name, shape, has_bias);
        let [output, input] = shape;
        let is_one_of = |ends: &[String]| ends.iter().any(|end| is_named(name, end));
        linear.adapter = match &self.decoder.adapters {
            Some(Adapters::Lora(lora)) if is_one_of(&lora.targets) => {
                let rank = lora.rank as usize;
                let mut push = |part: &str, shape: [usize; 2]| {
                    let name = format!("{name}.lora_{part}.weight");
                    self.layout.push(name, shape.into())
                };
                Some(Adapter::LowRank([
                    push("A", [rank, input]),
                    push("B", [output, rank]),
                ]))
            }
            Some(Adapters::Ia3(ia3)) if is_one_of(&ia3.targets) => {
                let name = format!("{name}.ia3_l");
                Some(match is_one_of(&ia3.feedforward) {
                    true => Adapter::Input(self.layout.push(name, vec![1, input])),
                    false => Adapter::Output(self.layout.push(name, vec![output, 1])),
                })
            }
            _ => None,
        };
        linear
    }

    fn norm(&mut self, name: &str) -> Affine {
        let width = self.decoder.width as usize;
        let has_bias = self.decoder.norm.kind == NormKind::LayerNorm;
        Affine {
            weight: self.layout.push(format!("{name}.weight"), vec![width]),
            bias: has_bias.then(|| self.layout.push(format!("{name}.bias"), vec![width])),
        }
    }
}
