"""The two models in plain PyTorch modules, with the parameter names of our weights files.

Every matrix is an `nn.Linear`, which is what kronfluence, captum's batched gradients and dattri's
EK-FAC can see; the token embedding is also the output matrix, so kronfluence sees 96 % of the
decoder's parameters (no embeddings, no norms).
"""

import math

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

DECODER = {"layers": 4, "heads": 4, "width": 256, "context": 64, "vocabulary": 100}
MLP = [64, 256, 256, 10]


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, h):
        size, length, width = h.shape
        q, k, v = (
            part.view(size, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(h).chunk(3, -1)
        )
        # Written out: LibTorch's fused attention has no second derivative on CPU.
        mask = torch.full((length, length), float("-inf"), dtype=h.dtype).triu(1)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads) + mask).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).reshape(size, length, width))


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, h):
        return self.down(F.gelu(self.up(h)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, h):
        h = h + self.attention(self.attention_norm(h))
        return h + self.mlp(self.mlp_norm(h))


class Decoder(nn.Module):
    """Pre-norm decoder with learned positions and tied output; `[B × T]` tokens to logits."""

    def __init__(self, layers, heads, width, context, vocabulary):
        super().__init__()
        self.token_embedding = nn.Parameter(0.02 * torch.randn(vocabulary, width))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(context, width))
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, tokens):
        h = self.token_embedding[tokens] + self.position_embedding[: tokens.shape[1]]
        for block in self.layers:
            h = block(h)
        return F.linear(self.final_norm(h), self.token_embedding)


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:]))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def example_losses(logits, targets):
    """Each example's loss: cross-entropy, its mean over positions for sequences, `[B]`."""
    if logits.dim() == 2:
        return F.cross_entropy(logits, targets, reduction="none")
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.mean(1)


def decoder(path=None):
    model = Decoder(**DECODER)
    return with_weights(model, path)


def mlp(path=None):
    return with_weights(Mlp(MLP), path)


def with_weights(model, path):
    if path is not None:
        model.load_state_dict(load_file(path))
    return model.eval()
