//! What a forward pass notes so that every example's own gradient can be had from one backward
//! pass.
//!
//! In one backward pass over a batch the gradients of the *sum* of the losses with respect to
//! every layer's output are each example's own, because examples do not meet. The gradient of a
//! matrix is then a sum of outer products over positions, `Σ_t u_t v_tᵀ`: of a linear layer with
//! input `a_t` and output gradient `d_t` it is `Σ_t d_t [a_t, 1]ᵀ` (the last column is the bias),
//! of a token embedding `Σ_t e(token_t) d_tᵀ` with one-hot `e`. Norms, positions (learned and
//! relative ones), factors and biases of matrices that are not trained have gradients of their own
//! that are small and simply written down.

use tch::{Kind, Tensor};

/// Where parameters were used, and what came out of each use.
#[derive(Debug, Default)]
pub struct Tape {
    uses: Vec<Use>,
    outputs: Vec<Tensor>,
}

/// One use of a parameter; numbers are positions in the layout.
#[derive(Debug)]
pub(in crate::torch) enum Use {
    /// `output = input · weight[rows]ᵀ + bias[rows]`, rows from `first_row` on; `input` is
    /// `[examples × positions × features]`.
    Linear {
        weight: usize,
        bias: Option<usize>,
        first_row: i64,
        input: Tensor,
    },
    /// `output = … + bias[rows]`, rows from `first_row` on.
    Bias { bias: usize, first_row: i64 },
    /// `output = input ∘ weight + bias`; what is not trained is `None`.
    Norm {
        weight: Option<usize>,
        bias: Option<usize>,
        input: Tensor,
    },
    /// `output = input ∘ factors`, factors from `first` on.
    Scale {
        factors: usize,
        first: i64,
        input: Tensor,
    },
    /// `output = weight[tokens]`; tokens `[examples × positions]`.
    Embedding { weight: usize, tokens: Tensor },
    /// `output = … + weight[first + position]`.
    Positions { weight: usize, first: i64 },
    /// `output = weight[buckets]`, a small table; the buckets, `[rows]`, are those of every example.
    Buckets { weight: usize, buckets: Tensor },
}

impl Use {
    /// A linear layer that read the rows `input`, `[examples · positions × features]`.
    pub(in crate::torch) fn linear(
        weight: usize,
        bias: Option<usize>,
        first_row: i64,
        input: &Tensor,
        examples: i64,
    ) -> Self {
        Self::Linear {
            weight,
            bias,
            first_row,
            input: per_example(input, examples),
        }
    }

    /// A norm whose normalised rows are `input`, `[examples · positions × features]`.
    pub(in crate::torch) fn norm(
        weight: Option<usize>,
        bias: Option<usize>,
        input: &Tensor,
        examples: i64,
    ) -> Self {
        Self::Norm {
            weight,
            bias,
            input: per_example(input, examples),
        }
    }

    /// Factors of the rows `input`, `[examples · positions × features]`.
    pub(in crate::torch) fn scale(
        factors: usize,
        first: i64,
        input: &Tensor,
        examples: i64,
    ) -> Self {
        Self::Scale {
            factors,
            first,
            input: per_example(input, examples),
        }
    }
}

impl Tape {
    /// Notes a use and its output.
    pub(in crate::torch) fn note(&mut self, used: Use, output: &Tensor) {
        self.uses.push(used);
        self.outputs.push(output.shallow_clone());
    }

    /// Runs backward from `loss`, the sum of the losses of `examples` examples, and keeps for each
    /// use what its parameters' gradients are made of. The graph can be used again if it is kept.
    pub(super) fn backward(&self, loss: &Tensor, examples: i64, keep_graph: bool) -> Vec<Piece> {
        let gradients = Tensor::run_backward(&[loss], &self.outputs, keep_graph, false);
        tch::no_grad(|| {
            let mut pieces = Vec::new();
            for (used, gradient) in self.uses.iter().zip(&gradients) {
                used.pieces(&per_example(gradient, examples), &mut pieces);
            }
            pieces
        })
    }
}

impl Use {
    fn pieces(&self, output: &Tensor, pieces: &mut Vec<Piece>) {
        match self {
            Self::Linear {
                weight,
                bias,
                first_row,
                input,
            } => pieces.push(Piece::Outer {
                weight: *weight,
                bias: *bias,
                first_row: *first_row,
                left: Left::Dense(output.shallow_clone()),
                right: match bias {
                    Some(_) => with_ones(input),
                    None => input.shallow_clone(),
                },
            }),
            Self::Norm {
                weight,
                bias,
                input,
            } => {
                if let Some(weight) = weight {
                    pieces.push(Piece::Formed {
                        parameter: *weight,
                        first: 0,
                        rows: (output * input).sum_dim_intlist(1, false, None),
                    });
                }
                if let Some(bias) = bias {
                    pieces.push(Piece::Formed {
                        parameter: *bias,
                        first: 0,
                        rows: output.sum_dim_intlist(1, false, None),
                    });
                }
            }
            Self::Scale {
                factors,
                first,
                input,
            } => pieces.push(Piece::Formed {
                parameter: *factors,
                first: *first,
                rows: (output * input).sum_dim_intlist(1, false, None),
            }),
            Self::Bias { bias, first_row } => pieces.push(Piece::Formed {
                parameter: *bias,
                first: *first_row,
                rows: output.sum_dim_intlist(1, false, None),
            }),
            Self::Embedding { weight, tokens } => pieces.push(Piece::Outer {
                weight: *weight,
                bias: None,
                first_row: 0,
                left: Left::Tokens(tokens.shallow_clone()),
                right: output.shallow_clone(),
            }),
            Self::Buckets { weight, buckets } => {
                let size = output.size();
                let (examples, columns) = (size[0], size[2]);
                let index = buckets.view([1, -1, 1]).expand_as(output);
                let rows = buckets.max().int64_value(&[]) + 1;
                let shape = [examples, rows, columns];
                let sums = Tensor::zeros(shape, (output.kind(), output.device()));
                pieces.push(Piece::Formed {
                    parameter: *weight,
                    first: 0,
                    rows: sums.scatter_add(1, &index, output).view([examples, -1]),
                });
            }
            Self::Positions { weight, first } => {
                let size = output.size();
                pieces.push(Piece::Formed {
                    parameter: *weight,
                    first: first * size[2],
                    rows: output.reshape([size[0], size[1] * size[2]]),
                });
            }
        }
    }
}

/// What one use contributes to the gradients of each example of a batch.
#[derive(Debug)]
pub(super) enum Piece {
    /// `Σ_t u_t v_tᵀ` to the rows of a matrix from `first_row` on; with a bias its gradient is
    /// the last column.
    Outer {
        weight: usize,
        bias: Option<usize>,
        first_row: i64,
        left: Left,
        /// `v`, `[examples × positions × columns]`.
        right: Tensor,
    },
    /// The values of a parameter from `first` on, `[examples × values]`; the others are 0.
    Formed {
        parameter: usize,
        first: i64,
        rows: Tensor,
    },
}

/// `u` of an outer product.
#[derive(Debug)]
pub(super) enum Left {
    /// `[examples × positions × rows]`.
    Dense(Tensor),
    /// The place of the one that is 1, `[examples × positions]`.
    Tokens(Tensor),
}

impl Piece {
    /// Memory it holds.
    pub(super) fn bytes(&self) -> usize {
        let of = |t: &Tensor| t.numel() * t.kind().elt_size_in_bytes();
        match self {
            Self::Outer { left, right, .. } => {
                of(right)
                    + match left {
                        Left::Dense(u) | Left::Tokens(u) => of(u),
                    }
            }
            Self::Formed { rows, .. } => of(rows),
        }
    }

    /// Pieces of the same block, one behind the other: dense outer products, or formed ones.
    pub(super) fn cat(parts: Vec<Self>) -> Self {
        let (mut lefts, mut rights) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                Self::Outer {
                    left: Left::Dense(left),
                    right,
                    ..
                } => {
                    lefts.push(left);
                    rights.push(right);
                }
                Self::Formed { rows, .. } => rights.push(rows),
                Self::Outer { .. } => unreachable!("tokens are not joined"),
            }
        }
        let right = Tensor::cat(&rights, 0);
        if lefts.is_empty() {
            return Self::Formed {
                parameter: 0,
                first: 0,
                rows: right,
            };
        }
        Self::Outer {
            weight: 0,
            bias: None,
            first_row: 0,
            left: Left::Dense(Tensor::cat(&lefts, 0)),
            right,
        }
    }

    /// Some of the examples, as a view.
    pub(super) fn narrow(&self, first: i64, count: i64) -> Self {
        let cut = |t: &Tensor| t.narrow(0, first, count);
        match self {
            Self::Outer {
                weight,
                bias,
                first_row,
                left,
                right,
            } => Self::Outer {
                weight: *weight,
                bias: *bias,
                first_row: *first_row,
                left: match left {
                    Left::Dense(u) => Left::Dense(cut(u)),
                    Left::Tokens(tokens) => Left::Tokens(cut(tokens)),
                },
                right: cut(right),
            },
            Self::Formed {
                parameter,
                first: start,
                rows,
            } => Self::Formed {
                parameter: *parameter,
                first: *start,
                rows: cut(rows),
            },
        }
    }

    /// The same with each example's contribution times a factor, `[examples]`.
    pub(super) fn scaled(&self, factors: &Tensor) -> Self {
        match self {
            Self::Outer {
                weight,
                bias,
                first_row,
                left,
                right,
            } => Self::Outer {
                weight: *weight,
                bias: *bias,
                first_row: *first_row,
                left: match left {
                    Left::Dense(u) => Left::Dense(u.shallow_clone()),
                    Left::Tokens(tokens) => Left::Tokens(tokens.shallow_clone()),
                },
                right: right * factors.view([-1, 1, 1]),
            },
            Self::Formed {
                parameter,
                first,
                rows,
            } => Self::Formed {
                parameter: *parameter,
                first: *first,
                rows: rows * factors.view([-1, 1]),
            },
        }
    }
}

/// `[examples · positions × features]` (or any shape of it) → `[examples × positions × features]`,
/// without gradient.
fn per_example(rows: &Tensor, examples: i64) -> Tensor {
    let features = *rows.size().last().expect("rows have features");
    rows.detach().reshape([examples, -1, features])
}

/// A column of ones behind the features.
fn with_ones(input: &Tensor) -> Tensor {
    let size = input.size();
    let ones = Tensor::ones([1, 1, 1], (input.kind(), input.device()));
    Tensor::cat(&[input, &ones.expand([size[0], size[1], 1], false)], 2)
}

/// Whole numbers as the type of the other factor.
pub(super) fn equal(a: &Tensor, b: &Tensor, kind: Kind) -> Tensor {
    a.view([-1, 1]).eq_tensor(&b.view([1, -1])).to_kind(kind)
}
