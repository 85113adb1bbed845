"""Makes the weights and examples that both sides read.

    python data.py FOLDER

    decoder.safetensors           weights in our own file form (kind `weights`)
    decoder_{train,test}.json     [{"tokens": [33 ids], "answer_start": 1}]
    mlp.safetensors               layers.0.weight [256 × 64], layers.0.bias, …
    mlp_{train,test}.safetensors  inputs [n × 64] f32, labels [n] u32

The models are trained a little on their training examples, from a fixed seed. Sequences come from
four random Markov chains, points from ten overlapping clusters, so that losses stay above 0.
"""

import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file

import models

SEQUENCES = {"train": 500, "test": 100}
POINTS = {"train": 2000, "test": 200}
LENGTH = 33


def sequences(generator):
    """Tokens `[600 × 33]`, each from one of four chains that favour few successors."""
    vocabulary, count = models.DECODER["vocabulary"], sum(SEQUENCES.values())
    logits = 2.0 * torch.randn(4, vocabulary, vocabulary, generator=generator)
    chains = logits.softmax(2)
    chain = torch.arange(count) % 4
    tokens = torch.empty(count, LENGTH, dtype=torch.long)
    tokens[:, 0] = torch.randint(vocabulary, (count,), generator=generator)
    for t in range(1, LENGTH):
        rows = chains[chain, tokens[:, t - 1]]
        tokens[:, t] = torch.multinomial(rows, 1, generator=generator)[:, 0]
    return tokens


def points(generator):
    count, width = sum(POINTS.values()), models.MLP[0]
    labels = torch.randint(models.MLP[-1], (count,), generator=generator)
    centres = 0.35 * torch.randn(models.MLP[-1], width, generator=generator)
    return centres[labels] + torch.randn(count, width, generator=generator), labels


def train(model, inputs, targets, steps, batch, learning_rate, generator):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        ids = torch.randint(len(inputs), (batch,), generator=generator)
        optimizer.zero_grad()
        models.example_losses(model(inputs[ids]), targets[ids]).mean().backward()
        optimizer.step()


def write_decoder(folder):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    tokens = sequences(generator)
    model = models.decoder()
    count = SEQUENCES["train"]
    train(model, tokens[:count, :-1], tokens[:count, 1:], 120, 16, 1e-3, generator)
    settings = {k: v for k, v in models.DECODER.items() if k != "vocabulary"}
    architecture = {
        "model": settings | {"tied_output": True, "dropout": 0.0},
        "vocabulary": models.DECODER["vocabulary"],
    }
    save_file(
        {name: p.detach() for name, p in model.named_parameters()},
        os.path.join(folder, "decoder.safetensors"),
        {"kind": "weights", "format_version": "1", "architecture": json.dumps(architecture)},
    )
    for name, part in [("train", tokens[:count]), ("test", tokens[count:])]:
        examples = [{"tokens": row, "answer_start": 1} for row in part.tolist()]
        with open(os.path.join(folder, f"decoder_{name}.json"), "w") as file:
            json.dump(examples, file)


def write_mlp(folder):
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    inputs, labels = points(generator)
    model = models.mlp()
    count = POINTS["train"]
    train(model, inputs[:count], labels[:count], 150, 64, 1e-3, generator)
    save_file(
        {name: p.detach() for name, p in model.named_parameters()},
        os.path.join(folder, "mlp.safetensors"),
    )
    for name, part in [("train", slice(count)), ("test", slice(count, None))]:
        save_file(
            {"inputs": inputs[part].clone(), "labels": labels[part].to(torch.uint32)},
            os.path.join(folder, f"mlp_{name}.safetensors"),
        )


def load(folder, model):
    """The model and `((inputs, targets) of the training, of the test examples)`."""
    path = os.path.join(folder, f"{model}.safetensors")
    parts = []
    for name in ["train", "test"]:
        if model == "decoder":
            with open(os.path.join(folder, f"decoder_{name}.json")) as file:
                tokens = torch.tensor([example["tokens"] for example in json.load(file)])
            parts.append((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
        else:
            file = load_file(os.path.join(folder, f"mlp_{name}.safetensors"))
            parts.append((file["inputs"], file["labels"].long()))
    return getattr(models, model)(path), *parts


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    torch.set_num_threads(2)
    write_decoder(folder)
    write_mlp(folder)
    for name in ["decoder", "mlp"]:
        model, *parts = load(folder, name)
        losses = [models.example_losses(model(x), y).mean().item() for x, y in parts]
        count = sum(p.numel() for p in model.parameters())
        print(f"{name}: {count} parameters, mean loss {losses[0]:.3f} train, {losses[1]:.3f} test")


if __name__ == "__main__":
    main()
