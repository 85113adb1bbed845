"""Real fine-tuning runs, recorded through the Trainer, and the checkpoints that are scored."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers

import simfluence
from simfluence.transformers import RecorderCallback, use_curriculum

STEPS, BATCH, RATE = 30, 8, 1e-3


def arguments(folder, **settings):
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": BATCH, "max_steps": STEPS,
            "learning_rate": RATE, "lr_scheduler_type": "constant", "report_to": [], "seed": 1,
            "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True,
            **settings,
        }
    )  # fmt: skip


def record(folder, start, train, test):
    """Diversified runs, held-out ones, and runs with a dataset dropped, repeated, kept alone, …"""
    plan = simfluence.Plan.draw(
        train.datasets, steps=STEPS, batch_size=BATCH, learning_rate=RATE, seed=7,
        runs=12, held_out=4, held_out_ordinary=2, suite={"bases": 2},
    )  # fmt: skip
    for place in range(len(plan)):
        sampler = simfluence.CurriculumSampler(plan, place)
        callback = RecorderCallback(
            folder / "runs", train, test, on_error="raise", run=sampler.run.id,
            seed=sampler.run.seed, design=sampler.run.design, eval_batch_size=len(test),
            train_examples=train.described("train"), test_examples=test.described("test"),
        )  # fmt: skip
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters())
        trainer = transformers.Trainer(
            model, arguments(folder / "out"), train_dataset=callback.train_dataset,
            callbacks=[callback], optimizers=(optimizer, sampler.rates(optimizer)),
        )  # fmt: skip
        use_curriculum(trainer, sampler)
        trainer.train()
    return simfluence.open(folder / "runs")


def checkpoints(folder, start, train):
    """Folders of the model along one more ordinary run, which no simulator learns from."""
    out = folder / "ordinary"
    settings = arguments(out, save_strategy="steps", save_steps=STEPS // 3, save_only_model=True)
    transformers.Trainer(copy.deepcopy(start), settings, train_dataset=train).train()
    return [Path(out) / f"checkpoint-{step}" for step in range(STEPS // 3, STEPS + 1, STEPS // 3)]
