"""Writes ref_transformer.json: losses and gradients of PyTorch's own transformer layers.

Run with PyTorch 2.13: python ref_transformer.py > ref_transformer.json
Parameter k (over all parameters in the order of the layout) is 0.4 sin(0.9 k + 0.1) as f32, in
64-bit arithmetic from there on. The loss is the sum over the examples of the mean negative
log-likelihood of the answer tokens.
"""
import json
import torch
from torch import nn

torch.set_default_dtype(torch.float64)
LAYERS, HEADS, W, C, V = 2, 2, 4, 8, 7
EXAMPLES = [([1, 5, 2, 0, 6], 3), ([3, 3, 4, 1, 2, 6, 0, 5, 1], 8), ([6, 0, 2], 1)]


class Model(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, W), nn.Embedding(C, W)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                W, HEADS, 4 * W, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(LAYERS))
        self.norm = nn.LayerNorm(W)
        self.output = None if tied else nn.Linear(W, V, bias=False)

    def in_order(self):
        yield self.tokens.weight
        yield self.positions.weight
        for layer in self.layers:
            a = layer.self_attn
            yield from (layer.norm1.weight, layer.norm1.bias, a.in_proj_weight, a.in_proj_bias)
            yield from (a.out_proj.weight, a.out_proj.bias, layer.norm2.weight, layer.norm2.bias)
            yield from (layer.linear1.weight, layer.linear1.bias)
            yield from (layer.linear2.weight, layer.linear2.bias)
        yield from (self.norm.weight, self.norm.bias)
        if self.output is not None:
            yield self.output.weight

    def loss(self, tokens, answer_start):
        x = torch.tensor(tokens[:-1])[None]
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for layer in self.layers:
            h = layer(h, src_mask=mask, is_causal=True)
        h = self.norm(h)
        logits = h @ self.tokens.weight.T if self.output is None else self.output(h)
        wanted = torch.tensor(tokens[answer_start:])
        return nn.functional.cross_entropy(logits[0, answer_start - 1:], wanted)


results = []
for tied in (True, False):
    model, k = Model(tied), 0
    for p in model.in_order():
        index = torch.arange(k, k + p.numel())
        p.data = (0.4 * torch.sin(0.9 * index + 0.1)).float().double().reshape(p.shape)
        k += p.numel()
    losses = [model.loss(*example) for example in EXAMPLES]
    sum(losses).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.in_order()])
    results.append({
        "tied_output": tied,
        "losses": [loss.item() for loss in losses],
        "gradient": gradient.tolist(),
    })
print(json.dumps(results))
