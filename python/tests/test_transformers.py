from __future__ import annotations

import copy
import warnings

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers

import simfluence
from simfluence.transformers import RecorderCallback, use_curriculum

TRAIN, TEST = tiny.Texts(22, 1), tiny.Texts(7, 2)


class Losses(transformers.TrainerCallback):
    """Keeps the parameters after every step."""

    def __init__(self):
        self.parameters = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        flat = [p.detach().flatten() for p in model.parameters() if p.requires_grad]
        self.parameters.append(torch.cat(flat).clone())


def arguments(folder, **settings):
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 2,
            "learning_rate": 1e-2, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
            "logging_steps": 1, "seed": 5, "use_cpu": True, **settings,
        }
    )  # fmt: skip


def train(folder, model, callback=None, resume=None, dataset=None, **settings):
    losses = Losses()
    trainer = transformers.Trainer(
        model, arguments(folder / "out", **settings), data_collator=tiny.collate,
        train_dataset=callback.train_dataset if callback else dataset or TRAIN,
        callbacks=[losses, *([callback] if callback else [])],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return logged, losses.parameters


def recorded(folder, **options):
    return RecorderCallback(folder / "runs", TRAIN, TEST, on_error="raise", **options)


def run_of(folder, run="run-000"):
    return simfluence.open(folder / "runs")[run]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_recorded_run_is_bit_for_bit_the_run_that_is_not_recorded(tmp_path, accumulation):
    plain = train(tmp_path, tiny.model(), gradient_accumulation_steps=accumulation)
    callback = recorded(tmp_path, batch_loss=True)
    with_recorder = train(
        tmp_path, tiny.model(), callback, gradient_accumulation_steps=accumulation
    )
    assert plain[0] == with_recorder[0]
    assert len(plain[1]) == len(with_recorder[1]) > 3
    assert all(torch.equal(a, b) for a, b in zip(plain[1], with_recorder[1], strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"accelerator_config": {"dispatch_batches": True}},
        {"accelerator_config": {"split_batches": True}},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        {"neftune_noise_alpha": 5.0},
        {"bf16": True},
        {"gradient_checkpointing": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_so_it_is_with_other_settings_of_the_trainer(tmp_path, settings):
    plain = train(tmp_path, tiny.model(), **settings)
    assert plain[0] == train(tmp_path, tiny.model(), recorded(tmp_path), **settings)[0]
    run = run_of(tmp_path)
    assert sorted(one for batch in run.batches for one in batch) == sorted([*range(22)] * 2)


def test_every_example_is_trained_on_once_per_epoch(tmp_path):
    train(tmp_path, tiny.model(), recorded(tmp_path))
    run = run_of(tmp_path)
    ids = [one for batch in run.batches for one in batch]
    assert sorted(ids) == sorted([*range(22), *range(22)])
    assert [len(batch) for batch in run.batches] == [4, 4, 4, 4, 4, 2] * 2
    assert run.status == "complete"


def test_ref_test_losses_are_those_of_each_example_alone(tmp_path):
    model = tiny.model()
    before = tiny.one_by_one(copy.deepcopy(model), TEST.rows)
    train(tmp_path, model, recorded(tmp_path, eval_every=5, eval_batch_size=3))
    run = run_of(tmp_path)
    assert run.curves().steps.tolist() == [0, 5, 10, 12]
    assert run.losses[0] == pytest.approx(before, abs=1e-5)
    assert run.losses[-1] == pytest.approx(tiny.one_by_one(model, TEST.rows), abs=1e-5)


@pytest.mark.parametrize("make", [tiny.model, tiny.llama])
def test_ref_weights_are_shares_of_the_tokens_of_the_step(tmp_path, make):
    train(tmp_path, make(), recorded(tmp_path), gradient_accumulation_steps=2)
    run = run_of(tmp_path)
    for batch, weights in zip(run.batches, run.weights, strict=True):
        counts = np.array([tiny.targets(TRAIN.rows[one]) for one in batch])
        assert weights == pytest.approx(counts / counts.sum(), abs=1e-6)
    micro = run.steps.to_polars()["batch_micro"].to_list()
    assert micro[0] == [0] * 4 + [1] * 4


def test_ref_the_recorded_weights_make_the_gradient_of_the_step(tmp_path):
    """One step of SGD moves the parameters by −η Σ_i w_i ∇L_i, each gradient taken alone."""
    start = tiny.model(dropout=0.0)
    model = copy.deepcopy(start)
    rate = 0.5
    train(
        tmp_path, model, recorded(tmp_path), gradient_accumulation_steps=2, max_steps=1, optim="sgd",
        learning_rate=rate, lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    run = run_of(tmp_path)
    (batch,), (weights,) = run.batches, run.weights
    assert len(batch) == 8 and run.learning_rates == [rate]
    loss = 0.0
    for one, weight in zip(batch, weights, strict=True):
        loss = loss + weight * start(**tiny.collate([TRAIN.rows[one]])).loss
    loss.backward()
    moved = torch.cat(
        [
            (a - b).detach().flatten()
            for a, b in zip(start.parameters(), model.parameters(), strict=True)
        ]
    )
    expected = rate * torch.cat([p.grad.flatten() for p in start.parameters()])
    assert torch.allclose(moved, expected, rtol=1e-3, atol=1e-6)


def test_a_model_without_loss_kwargs_averages_its_micro_batches(tmp_path):
    model = tiny.model()
    model.accepts_loss_kwargs = False
    train(tmp_path, model, recorded(tmp_path), gradient_accumulation_steps=2)
    run = run_of(tmp_path)
    for batch, weights in zip(run.batches, run.weights, strict=True):
        micros = [batch[:4], batch[4:]] if len(batch) > 4 else [batch]
        expected = []
        for micro in micros:
            counts = np.array([tiny.targets(TRAIN.rows[one]) for one in micro])
            expected += list(counts / counts.sum() / len(micros))
        assert weights == pytest.approx(expected, abs=1e-6)


def test_losses_of_the_batch_are_recorded_before_the_update(tmp_path):
    model = tiny.model(dropout=0.0)
    before = tiny.one_by_one(copy.deepcopy(model), TRAIN.rows)
    train(tmp_path, model, recorded(tmp_path, batch_loss=True))
    run = run_of(tmp_path)
    assert run.batch_losses[0] == pytest.approx([before[one] for one in run.batches[0]], abs=1e-5)
    assert all(
        len(b) == len(losses) for b, losses in zip(run.batches, run.batch_losses, strict=True)
    )


def test_learning_rates_are_those_that_were_used(tmp_path):
    train(tmp_path, tiny.model(), recorded(tmp_path), lr_scheduler_type="linear")
    rates = run_of(tmp_path).learning_rates
    assert rates == pytest.approx([1e-2 * (1 - t / 12) for t in range(12)])


def test_settings_are_recorded(tmp_path):
    train(tmp_path, tiny.model(), recorded(tmp_path), gradient_accumulation_steps=2)
    info = run_of(tmp_path).info
    assert info["seed"] == 5 and info["batch_size"] == 8 and info["planned_steps"] == 6
    assert info["optimizer"]["name"] == "adamw" and info["schedule"]["kind"] == "linear"
    assert info["software"]["transformers"] == transformers.__version__
    assert len(info["base_model"]) == 64


def test_lora_of_peft_is_recorded(tmp_path):
    def lora():
        return peft.get_peft_model(tiny.model(), peft.LoraConfig(r=2, task_type="CAUSAL_LM"))

    torch.manual_seed(1)
    plain = train(tmp_path, lora())
    torch.manual_seed(1)
    with_recorder = train(tmp_path, lora(), recorded(tmp_path))
    assert plain[0] == with_recorder[0]
    run = run_of(tmp_path)
    assert 0 < run.info["trainable_parameters"] < 5000
    counts = np.array([tiny.targets(TRAIN.rows[one]) for one in run.batches[0]])
    assert run.weights[0] == pytest.approx(counts / counts.sum(), abs=1e-6)


def test_workers_and_a_table_of_datasets_carry_ids_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {**row, "key": f"k{i}", "dataset": "odd" if i % 2 else "even"}
        for i, row in enumerate(TRAIN.rows)
    ]
    table = datasets.Dataset.from_list(rows)
    callback = RecorderCallback(tmp_path / "runs", table, TEST, eval_every=0, on_error="raise")
    train(tmp_path, tiny.model(), callback, dataloader_num_workers=2)
    run = run_of(tmp_path)
    assert sorted(one for batch in run.batches[:6] for one in batch) == list(range(22))
    assert run.run_set.train_keys[3] == "k3" and "odd 11" in repr(run.run_set)
    plain = train(tmp_path, tiny.model(), dataset=table)
    again = RecorderCallback(tmp_path / "runs", table, TEST, on_error="raise")
    assert plain[0] == train(tmp_path, tiny.model(), again)[0]


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    whole = train(tmp_path, tiny.model(), recorded(tmp_path, run="whole"))
    callback = recorded(tmp_path, run="parts")

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 7

    callback_list = [callback, Stop()]
    saved = dict(save_strategy="steps", save_steps=5)
    trainer = transformers.Trainer(
        tiny.model(), arguments(tmp_path / "out", **saved), data_collator=tiny.collate,
        train_dataset=callback.train_dataset, callbacks=callback_list,
    )  # fmt: skip
    trainer.train()
    assert run_of(tmp_path, "parts").status == "aborted"
    resumed = recorded(tmp_path, run="parts")
    train(tmp_path, tiny.model(), resumed, resume=str(tmp_path / "out" / "checkpoint-5"), **saved)
    first, second = run_of(tmp_path, "whole"), run_of(tmp_path, "parts")
    assert first.batches == second.batches and second.status == "complete"
    assert np.array_equal(first.losses, second.losses)
    assert len(whole[0]) == 12


@pytest.mark.parametrize("when", ["opening", "evaluating", "writing"])
def test_a_recorder_that_fails_does_not_stop_training(tmp_path, when, monkeypatch):
    plain = train(tmp_path, tiny.model())
    options = {}
    if when == "opening":
        (tmp_path / "runs").write_text("in the way")
    elif when == "evaluating":
        options["example_loss"] = lambda outputs, batch: 1 / 0
    else:
        from simfluence import Recorder

        monkeypatch.setattr(
            Recorder, "log_step", lambda self, *a, **k: self.fail(OSError("disk full"))
        )
    callback = RecorderCallback(tmp_path / "runs", TRAIN, TEST, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = train(tmp_path, tiny.model(), callback)
    ours = [one for one in caught if "simfluence" in str(one.message)]
    assert len(ours) == 1 and "training goes on" in str(ours[0].message)
    assert losses[0] == plain[0]
    if when != "opening":
        assert run_of(tmp_path).status == "aborted"


def test_a_dataset_that_does_not_know_its_places_is_said_so(tmp_path):
    callback = recorded(tmp_path)
    trainer = transformers.Trainer(
        tiny.model(), arguments(tmp_path / "out"), data_collator=tiny.collate, train_dataset=TRAIN,
        callbacks=[callback],
    )  # fmt: skip
    with pytest.raises(simfluence.UsageError, match=r"callback\.train_dataset"):
        trainer.train()


@pytest.mark.parametrize("wrong", ["dataset", "collator"])
def test_what_cannot_be_recorded_is_trained_all_the_same(tmp_path, wrong):
    callback = RecorderCallback(tmp_path / "runs", TRAIN, TEST)

    def packed(examples):
        ids = torch.tensor([[one for example in examples for one in example["input_ids"]][:16]])
        return {"input_ids": ids, "labels": ids}

    trainer = transformers.Trainer(
        tiny.model(),
        arguments(tmp_path / "out", max_steps=2),
        data_collator=packed if wrong == "collator" else tiny.collate,
        train_dataset=TRAIN if wrong == "dataset" else callback.train_dataset,
        callbacks=[callback],
    )
    says = "packs" if wrong == "collator" else "train_dataset"
    with pytest.warns(RuntimeWarning, match=says):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_trainer_trains_a_planned_run(tmp_path):
    plan = simfluence.Plan.draw(22, steps=6, batch_size=4, learning_rate=1e-2, held_out=0)
    sampler = simfluence.CurriculumSampler(plan, 3)
    callback = recorded(tmp_path, run=sampler.run.id, design=sampler.run.design)
    model = tiny.model()
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = transformers.Trainer(
        model, arguments(tmp_path / "out", max_steps=6, per_device_train_batch_size=2,
        gradient_accumulation_steps=2), data_collator=tiny.collate,
        train_dataset=callback.train_dataset, callbacks=[callback],
        optimizers=(optimizer, sampler.rates(optimizer)),
    )  # fmt: skip
    use_curriculum(trainer, sampler)
    trainer.train()
    run = run_of(tmp_path, "train-003")
    assert run.batches == plan[3].batches
    assert run.learning_rates == pytest.approx(plan[3].learning_rates)
    assert run.info["design"]["split"] == "train"
