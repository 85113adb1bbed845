"""transformers and PyTorch's side: the same job as crates/models/examples/fine_tuning_peer.rs.

    theirs.py job.json

Written as one would by hand for speed: no Trainer around the loop, tensors of a batch padded to its
longest example, one call of the model, AdamW's own defaults; evaluation in batches of similar length
under inference_mode.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def status(field):
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024


def batch(examples):
    longest = max(len(e["tokens"]) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example["tokens"])
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, example["answer_start"] : len(tokens)] = tokens[example["answer_start"] :]
    return ids, mask, labels


def losses(model, ids, mask, labels):
    """Mean negative log-likelihood per answer token of each example."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    targets = labels[:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    ).view_as(targets)
    return each.sum(1) / (targets != -100).sum(1)


def evaluate(model, examples, size):
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["tokens"]))
    found = [0.0] * len(examples)
    model.eval()
    with torch.inference_mode():
        for first in range(0, len(order), size):
            part = order[first : first + size]
            for i, loss in zip(part, losses(model, *batch([examples[i] for i in part])).tolist()):
                found[i] = loss
    model.train()
    return found


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if job["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    start = status("VmRSS")
    evaluate(model, job["test"], job["evaluation_batches"][0])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["learning_rate"])
    model.train()
    steps = []
    for ids in job["batches"]:
        begin = time.perf_counter()
        loss = losses(model, *batch([job["train"][i] for i in ids])).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        steps.append(time.perf_counter() - begin)
    peak = status("VmHWM")
    seconds = []
    for size in job["evaluation_batches"]:
        of_size = []
        for _ in range(job["evaluations"]):
            begin = time.perf_counter()
            found = evaluate(model, job["test"], size)
            of_size.append(time.perf_counter() - begin)
        seconds.append(of_size)
    print(
        json.dumps(
            {
                "step_seconds": steps[:-1],
                "evaluation_seconds": seconds,
                "losses": found,
                "peak_mib": peak,
                "start_mib": start,
            }
        )
    )


main()
