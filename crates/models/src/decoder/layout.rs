//! The parameters of a decoder in their fixed order, and which of them each part uses.

use super::{Adapters, Decoder, Gate, Names, NormKind, Positions, Projection, Structure};
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
    /// The encoder in front of the decoder.
    pub encoder: Option<StackPlaces>,
    /// The blocks.
    pub stack: StackPlaces,
    /// From the residual stream to the width of the token embedding.
    pub project_out: Option<Linear>,
    /// Output matrix, `[vocabulary × embedding width]`; the token embedding where it is tied.
    pub output: Linear,
}

/// Where the parameters of blocks that follow each other stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackPlaces {
    /// Numbers that relative positions add to the attention's scores, `[buckets × heads]`.
    pub relative_bias: Option<usize>,
    /// The blocks.
    pub layers: Vec<LayerPlaces>,
    /// Norm behind the last block.
    pub final_norm: Option<Affine>,
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
    /// Attention to what the encoder gives.
    pub cross: Option<CrossPlaces>,
    /// Norm of the MLP.
    pub mlp_norm: Affine,
    /// The MLP.
    pub mlp: MlpPlaces,
}

/// Attention to what the encoder gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrossPlaces {
    /// Its norm.
    pub norm: Affine,
    /// Queries, keys and values.
    pub qkv: [Linear; 3],
    /// Its output.
    pub output: Linear,
}

impl Places {
    /// The stacks: the encoder's and the decoder's.
    pub fn stacks(&self) -> impl Iterator<Item = &StackPlaces> {
        self.encoder.iter().chain([&self.stack])
    }

    /// All norms.
    pub fn norms(&self) -> impl Iterator<Item = Affine> {
        self.stacks().flat_map(|stack| {
            let of_blocks = stack.layers.iter().flat_map(LayerPlaces::norms);
            of_blocks.chain(stack.final_norm)
        })
    }
}

impl LayerPlaces {
    fn norms(&self) -> impl Iterator<Item = Affine> {
        let cross = self.cross.map(|cross| cross.norm);
        [self.attention_norm, self.mlp_norm]
            .into_iter()
            .chain(cross)
    }

    /// The linear layers.
    pub fn matrices(&self) -> Vec<Linear> {
        let mut all = match self.qkv {
            QkvPlaces::Fused(qkv) => vec![qkv],
            QkvPlaces::Separate(parts) => parts.to_vec(),
        };
        all.push(self.attention_output);
        if let Some(cross) = self.cross {
            all.extend(cross.qkv);
            all.push(cross.output);
        }
        all.extend(self.mlp.gate);
        all.extend([self.mlp.up, self.mlp.down]);
        all
    }
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
/// Blocks follow each other, an encoder's first; within one: norm, queries-keys-values, output, the
/// same of the attention to an encoder, norm, gate, up, down, each matrix with its bias and its
/// adapter right behind it.
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
            Positions::Rotary(_) | Positions::Relative(_) => None,
        };
        let project_in =
            is_projected.then(|| self.linear(names.project_in, [width, embedding[1]], false));
        let encoder = match (decoder.structure, names.encoder) {
            (Structure::EncoderDecoder { layers, .. }, Some(names)) => {
                Some(self.stack(names, layers))
            }
            _ => None,
        };
        let stack = self.stack(names, decoder.layers);
        let project_out =
            is_projected.then(|| self.linear(names.project_out, [embedding[1], width], false));
        let output = match decoder.tied_output {
            true => Linear {
                weight: token_embedding,
                bias: None,
                adapter: None,
            },
            false => self.linear(names.output, embedding, false),
        };
        Places {
            token_embedding,
            position_embedding,
            project_in,
            encoder,
            stack,
            project_out,
            output,
        }
    }

    fn stack(&mut self, names: &Names, layers: u32) -> StackPlaces {
        let relative_bias = match self.decoder.positions {
            Positions::Relative(positions) => {
                let shape = [positions.buckets, self.decoder.attention.heads];
                Some(self.embedding(names.relative_bias, shape.map(|n| n as usize)))
            }
            Positions::Learned { .. } | Positions::Rotary(_) => None,
        };
        StackPlaces {
            relative_bias,
            layers: (0..layers).map(|layer| self.layer(names, layer)).collect(),
            final_norm: (self.decoder.has_final_norm).then(|| self.norm(names.final_norm)),
        }
    }

    fn layer(&mut self, names: &Names, layer: u32) -> LayerPlaces {
        let at = |name: &str| name.replace("{}", &layer.to_string());
        LayerPlaces {
            attention_norm: self.norm(&at(names.attention_norm)),
            qkv: self.qkv(names, &at),
            attention_output: self.attention_output(&at(names.attention_output)),
            cross: (!names.cross_norm.is_empty()).then(|| CrossPlaces {
                norm: self.norm(&at(names.cross_norm)),
                qkv: self.separate([names.cross_query, names.cross_key, names.cross_value], &at),
                output: self.attention_output(&at(names.cross_output)),
            }),
            mlp_norm: self.norm(&at(names.mlp_norm)),
            mlp: self.mlp(names, &at),
        }
    }

    fn attention_output(&mut self, name: &str) -> Linear {
        let (width, attention) = (self.decoder.width as usize, &self.decoder.attention);
        let attended = (attention.heads * attention.head_width) as usize;
        self.adaptable(name, [width, attended], attention.has_output_bias)
    }

    fn qkv(&mut self, names: &Names, at: &dyn Fn(&str) -> String) -> QkvPlaces {
        let attention = &self.decoder.attention;
        match attention.projection {
            Projection::Fused | Projection::FusedByHead => {
                let [queries, keys] = self.rows();
                let shape = [queries + 2 * keys, self.decoder.width as usize];
                QkvPlaces::Fused(self.adaptable(&at(names.qkv), shape, attention.has_bias))
            }
            Projection::Separate => {
                QkvPlaces::Separate(self.separate([names.query, names.key, names.value], at))
            }
        }
    }

    /// Queries, keys and values in three matrices.
    fn separate(&mut self, names: [&str; 3], at: &dyn Fn(&str) -> String) -> [Linear; 3] {
        let (width, has_bias) = (self.decoder.width as usize, self.decoder.attention.has_bias);
        let [queries, keys] = self.rows();
        let [query, key, value] = names.map(at);
        [
            self.adaptable(&query, [queries, width], has_bias),
            self.adaptable(&key, [keys, width], has_bias),
            self.adaptable(&value, [keys, width], has_bias),
        ]
    }

    /// Rows of the matrices of queries, and of keys or values.
    fn rows(&self) -> [usize; 2] {
        let attention = &self.decoder.attention;
        [attention.heads, attention.key_value_heads]
            .map(|heads| (heads * attention.head_width) as usize)
    }

    fn mlp(&mut self, names: &Names, at: &dyn Fn(&str) -> String) -> MlpPlaces {
        let mlp = &self.decoder.mlp;
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
