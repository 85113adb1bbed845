"""Writes ref_optimizers.json: parameters after twelve steps of each of torch.optim's optimisers.

Run with PyTorch 2.13: python ref_optimizers.py > ref_optimizers.json
Parameters start at cos(0.7 k), the gradient of step t is (1 + k % 5) sin(0.37 k + 1.3 t), the
learning rate 0.05 / (1 + 0.1 t), with k the position among all parameters.
"""
import json
import torch

torch.set_default_dtype(torch.float64)
W, V, C = 2, 3, 2
SHAPES = [
    [V, W], [C, W],
    [W], [W], [3 * W, W], [3 * W], [W, W], [W],
    [W], [W], [4 * W, W], [4 * W], [W, 4 * W], [W],
    [W], [W],
]
EPS1 = torch.finfo(torch.float32).eps
CASES = [
    ({"name": "sgd"}, lambda p: torch.optim.SGD(p, lr=1.0)),
    ({"name": "sgd", "momentum": 0.9, "weight_decay": 0.02},
     lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.02)),
    ({"name": "sgd", "momentum": 0.8, "dampening": 0.3},
     lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.8, dampening=0.3)),
    ({"name": "sgd", "momentum": 0.9, "nesterov": True},
     lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True)),
    ({"name": "rmsprop", "alpha": 0.9, "weight_decay": 0.01},
     lambda p: torch.optim.RMSprop(p, lr=1.0, alpha=0.9, weight_decay=0.01)),
    ({"name": "rmsprop", "momentum": 0.5},
     lambda p: torch.optim.RMSprop(p, lr=1.0, momentum=0.5)),
    ({"name": "adam", "weight_decay": 0.02},
     lambda p: torch.optim.Adam(p, lr=1.0, weight_decay=0.02)),
    ({"name": "adamw", "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1},
     lambda p: torch.optim.AdamW(p, lr=1.0, betas=(0.8, 0.95), weight_decay=0.1)),
    ({"name": "adafactor"},
     lambda p: torch.optim.Adafactor(p, lr=1.0, eps=(EPS1, 1e-3), weight_decay=0.0)),
    ({"name": "adafactor", "d": 1.2, "beta2_decay": -0.5, "weight_decay": 0.05},
     lambda p: torch.optim.Adafactor(
         p, lr=1.0, eps=(EPS1, 1e-3), d=1.2, beta2_decay=-0.5, weight_decay=0.05)),
]


def cut(flat):
    parts, start = [], 0
    for shape in SHAPES:
        count = torch.Size(shape).numel()
        parts.append(flat[start:start + count].reshape(shape).clone())
        start += count
    return parts


COUNT = sum(torch.Size(s).numel() for s in SHAPES)
K = torch.arange(COUNT, dtype=torch.float64)
results = []
for name, make in CASES:
    parameters = [torch.nn.Parameter(p) for p in cut(torch.cos(0.7 * K))]
    optimizer = make(parameters)
    for t in range(1, 13):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (1 + 0.1 * t)
        for p, g in zip(parameters, cut((1 + K % 5) * torch.sin(0.37 * K + 1.3 * t))):
            p.grad = g
        optimizer.step()
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    results.append({"optimizer": name, "parameters": flat.tolist()})
print(json.dumps(results))
