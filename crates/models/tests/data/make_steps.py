"""Writes `steps.safetensors` and `decay.json`: steps as transformers' Trainer makes them.

Run after make.py, with the same libraries: python make_steps.py

`FOLDER/CASE/NAME` of `steps.safetensors` is a parameter of the checkpoint FOLDER after two steps of
torch.optim.AdamW (learning rate 1e-4, eps 1e-5, weight decay 0.5, the other constants PyTorch's) on
all examples of `examples.json`, in two parameter groups: weight decay on what
`Trainer.get_decay_parameter_names` gives, none on the rest. CASE is

- `example_mean`: the loss is the mean over the examples of their mean over answer tokens,
- `token_mean`: two micro-batches of two padded examples, each with the model's own loss given
  `num_items_in_batch`, the number of answer tokens of all four; their gradients are summed.

All of it is computed in 64 bits as in make.py and kept in 32. `decay.json` has the names with decay
and those without of every checkpoint.
"""
import json

import peft
import torch
import transformers
from safetensors.torch import save_file

from make import (
    ADAPTERS, CONFIGS, EXAMPLES, HERE, In64Bits, answers, in_32_bits, in_64_bits, stored_name)

STEPS = ["gpt2", "opt_post_norm", "llama", "llama_lora"]


def places(name):
    """Folders of a checkpoint and of its adapter."""
    is_adapter = name in ADAPTERS
    return HERE / (ADAPTERS[name][0] if is_adapter else name), HERE / name if is_adapter else None


def example_mean(model):
    losses = [answers(model, *example)[1] for example in EXAMPLES]
    (sum(losses) / len(losses)).backward()


def token_mean(model):
    count = sum(len(tokens) - start for tokens, start in EXAMPLES)
    for first in (0, 2):
        members = EXAMPLES[first:first + 2]
        length = max(len(tokens) for tokens, _ in members)
        padded = [tokens + [0] * (length - len(tokens)) for tokens, _ in members]
        labels = [[-100] * start + tokens[start:] + [-100] * (length - len(tokens))
                  for tokens, start in members]
        mask = [[1] * len(tokens) + [0] * (length - len(tokens)) for tokens, _ in members]
        model(input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask),
              labels=torch.tensor(labels), num_items_in_batch=torch.tensor(count)).loss.backward()


def decayed(model):
    """Names of the trained parameters with weight decay, and without."""
    names = set(transformers.Trainer.get_decay_parameter_names(None, model))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return ([(n, p) for n, p in trained if n in names],
            [(n, p) for n, p in trained if n not in names])


def after_two_steps(name, case):
    single = in_32_bits(*places(name))
    with In64Bits():
        model = in_64_bits(single, *places(name))
        with_decay, without = decayed(model)
        optimizer = torch.optim.AdamW(
            [dict(params=[p for _, p in with_decay], weight_decay=0.5),
             dict(params=[p for _, p in without], weight_decay=0.0)], lr=1e-4, eps=1e-5)
        for _ in range(2):
            optimizer.zero_grad()
            case(model)
            optimizer.step()
        parameters = {stored_name(model, n): p.detach().clone() for n, p in with_decay + without}
    assert all(p.dtype == torch.float64 for p in parameters.values())
    return {f"{name}/{case.__name__}/{n}": p.to(torch.float32).contiguous()
            for n, p in parameters.items()}


def main():
    saved, groups = {}, {}
    for name in [*CONFIGS, *ADAPTERS]:
        model = in_32_bits(*places(name))
        if name in ADAPTERS:
            model.set_adapter("default", inference_mode=False)
        with_decay, others = ([stored_name(model, n) for n, _ in group] for group in decayed(model))
        groups[name] = dict(decayed=with_decay, others=others)
    for name in STEPS:
        for case in (example_mean, token_mean):
            saved.update(after_two_steps(name, case))
    save_file(saved, HERE / "steps.safetensors")
    (HERE / "decay.json").write_text(json.dumps(groups, indent=1) + "\n")


if __name__ == "__main__":
    main()
