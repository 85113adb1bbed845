"""Networks on images in PyTorch's own layers: logits, losses, gradients and one step of AdamW.

    python3 make.py > networks.json

Written with PyTorch 2.13. Everything is computed in 64 bits; parameters are rounded to 32 bits
first, as weights are stored so.
"""

import json
import math

import torch
from torch import nn

CASES = [
    dict(rows=8, columns=7, channels=[2, 3], kernel=3, hidden=[5], classes=4, mean=0.0, std=1.0),
    dict(rows=9, columns=9, channels=[3], kernel=5, hidden=[], classes=3, mean=0.29, std=0.35),
    dict(rows=4, columns=5, channels=[], kernel=5, hidden=[6, 4], classes=3, mean=0.13, std=0.31),
]
COUNT = 5
RATE, DECAY = 1e-2, 0.1


def network(case):
    layers, inputs = [], 1
    rows, columns = case["rows"], case["columns"]
    for channels in case["channels"]:
        layers += [nn.Conv2d(inputs, channels, case["kernel"], padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
        inputs, rows, columns = channels, rows // 2, columns // 2
    layers.append(nn.Flatten())
    inputs *= rows * columns
    for width in case["hidden"]:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    layers.append(nn.Linear(inputs, case["classes"]))
    return nn.Sequential(*layers).double()


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).tolist()


def solve(case):
    model = network(case)
    position = 0
    with torch.no_grad():
        for parameter in model.parameters():
            count = parameter.numel()
            values = [0.4 * math.sin(0.9 * p + 0.1) for p in range(position, position + count)]
            parameter.copy_(torch.tensor(values).float().double().view_as(parameter))
            position += count
    pixels = case["rows"] * case["columns"]
    images = [[(i * 89 + p * p * 57 + p * 13) % 256 for p in range(pixels)] for i in range(COUNT)]
    classes = [(2 * i + 1) % case["classes"] for i in range(COUNT)]
    inputs = torch.tensor(images, dtype=torch.double).view(COUNT, 1, case["rows"], case["columns"])
    inputs = (inputs / 255 - case["mean"]) / case["std"]
    answer = dict(case=case, images=images, labels=classes, parameters=flat(model.parameters()))
    logits = model(inputs)
    losses = nn.functional.cross_entropy(logits, torch.tensor(classes), reduction="none")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    losses.mean().backward()
    answer["logits"] = flat([logits])
    answer["losses"] = losses.tolist()
    answer["gradient"] = flat(p.grad for p in model.parameters())
    optimizer.step()
    answer["stepped"] = flat(model.parameters())
    return answer


print(json.dumps([solve(case) for case in CASES]))
