"""What recording costs: a fine-tuning of a transformer of 3.4 million parameters, batch 8.

Times what the callback does in a run against the whole run, so that both see the same machine; and
the evaluation of 100 test examples against a batched loop without gradients as one writes it by
hand, the two taking turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict

import torch
import transformers

from simfluence import transformers as transformers_callback
from simfluence._loading import split_ids
from simfluence.torch import Tracker, preserved
from simfluence.transformers import RecorderCallback, _Collate

STEPS, BATCH, TESTS, TOKENS = 60, 8, 100, 64
#: Steps after which a segment is written; by default 256, which costs less.
SEGMENT = 20


def examples(count, seed):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 2048, (count, TOKENS), generator=draw)
    return [{"input_ids": row, "labels": row} for row in ids]


def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=224,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def timed(spent, owner, name):
    """Adds up the time that a method takes."""
    method = getattr(owner, name)

    def wrapper(*args, **kwargs):
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    setattr(owner, name, wrapper)


class Clock(transformers.TrainerCallback):
    """Times the steps, from the first to the last."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def record(folder, **options):
    """A recorded run without evaluations between its ends: seconds per step, of them recording."""
    spent = defaultdict(float)
    callback = RecorderCallback(
        f"{folder}/runs",
        examples(400, 0),
        examples(TESTS, 1),
        eval_every=0,
        segment_rows=SEGMENT,
        **options,
    )
    clock = Clock()
    arguments = transformers.TrainingArguments(
        output_dir=f"{folder}/out",
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model(),
        arguments,
        train_dataset=callback.train_dataset,
        data_collator=transformers.default_data_collator,
        callbacks=[clock, callback],
    )
    methods = [
        (callback, "on_pre_optimizer_step"),
        (callback, "_take_batch"),
        (callback, "_before"),
        (callback, "_end_micro"),
        (callback, "_note_losses"),
        (Tracker, "end_step"),
        (_Collate, "_targets"),
        (transformers_callback, "split_ids"),
    ]
    plain = {name: getattr(owner, name) for owner, name in methods if isinstance(owner, type)}
    for owner, name in methods:
        timed(spent, owner, name)
    before_last = {}

    class Last(transformers.TrainerCallback):
        # The last step is followed by an evaluation, which is not what is measured.
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == STEPS - 1:
                before_last.update(spent)

    trainer.add_callback(Last())
    trainer.train()
    Tracker.end_step, _Collate._targets = plain["end_step"], plain["_targets"]
    transformers_callback.split_ids = split_ids
    per_step = (clock.times[-1] - clock.times[0]) / (STEPS - 1)
    return per_step, {name: seconds / (STEPS - 1) for name, seconds in before_last.items()}


def evaluation():
    """Seconds of an evaluation by the callback, and by hand."""
    net, tests = model(), examples(TESTS, 1)
    callback = RecorderCallback("unused", examples(8, 0), tests)
    collate = transformers.default_data_collator
    callback._test_batches, callback._shift = callback._collated(collate, BATCH), True

    def ours():
        return callback._evaluate(net, range(TESTS))

    batches = [collate(tests[first : first + BATCH]) for first in range(0, TESTS, BATCH)]

    def by_hand():
        net.eval()
        losses = []
        with torch.no_grad():
            for batch in batches:
                logits = net(**batch).logits[:, :-1]
                labels = batch["labels"][:, 1:]
                each = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), reduction="none"
                )
                losses += each.view(labels.shape).mean(1).tolist()
        net.train()
        return losses

    with preserved(net):
        assert torch.allclose(torch.tensor(ours()), torch.tensor(by_hand()), atol=1e-5)
    seconds = {"ours": [], "by hand": []}
    for _ in range(7):
        for name, function in (("ours", ours), ("by hand", by_hand)):
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main():
    parameters = sum(p.numel() for p in model().parameters())
    print(f"{parameters / 1e6:.1f} million parameters, batch {BATCH} × {TOKENS} tokens, CPU")
    for options in ({}, {"batch_loss": True}):
        with tempfile.TemporaryDirectory() as folder:
            step, parts = record(folder, **options)
        total = sum(parts.values())
        said = ", ".join(f"{name} {1e6 * s:.0f} µs" for name, s in sorted(parts.items()))
        kind = "with losses of the batch" if options else "recording"
        print(
            f"{kind}: {1e3 * total:.2f} of {1e3 * step:.0f} ms per step, {total / step:.2%} ({said})"
        )
    times = evaluation()
    ratio = times["ours"] / times["by hand"]
    print(
        f"evaluating {TESTS} test examples: {times['ours']:.2f} s, by hand {times['by hand']:.2f} s "
        f"({ratio:.2f}×)"
    )


if __name__ == "__main__":
    main()
