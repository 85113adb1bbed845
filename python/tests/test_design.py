from __future__ import annotations

import numpy as np
import pytest
import torch

import simfluence
from simfluence.torch import DataLoader


def test_the_same_seed_draws_the_same_plan(plan):
    again = simfluence.Plan.draw(
        ["red"] * 8 + ["blue"] * 8, steps=30, batch_size=4, learning_rate=1e-2, seed=3, runs=12,
        held_out=2, held_out_ordinary=1,
    )  # fmt: skip
    assert [run.batches for run in plan] == [run.batches for run in again]
    assert plan.ids[:2] == ["train-000", "train-001"]
    assert plan[0].batches != plan[1].batches


def test_a_plan_is_a_file_from_which_every_run_can_be_trained_elsewhere(plan, tmp_path):
    plan.write(tmp_path / "plan.parquet")
    read = simfluence.Plan.read(tmp_path / "plan.parquet", 16)
    assert read.ids == plan.ids
    for ours, theirs in zip(plan, read, strict=True):
        assert (ours.batches, ours.seed, ours.design) == (
            theirs.batches,
            theirs.seed,
            theirs.design,
        )
        assert np.allclose(ours.learning_rates, theirs.learning_rates)


def test_the_sampler_gives_the_batches_of_its_run(plan):
    sampler = simfluence.CurriculumSampler(plan, 2)
    assert isinstance(sampler, torch.utils.data.Sampler)
    loader = DataLoader(list(range(16)), batch_size=4, sampler=sampler)
    given = [batch.tolist() for batch in loader]
    assert given == plan[2].batches and list(loader.seen) == plan[2].batches
    assert len(sampler) == 120
    resumed = simfluence.CurriculumSampler(plan, "train-002", start=10)
    assert resumed.batches == plan[2].batches[10:]


def test_the_rates_of_the_run_are_a_scheduler(plan):
    sampler = simfluence.CurriculumSampler(plan, 1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=123.0)
    scheduler, used = sampler.rates(optimizer), []
    for _ in sampler.batches:
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert used == pytest.approx(plan[1].learning_rates)


def test_a_run_that_the_plan_does_not_have_is_named(plan):
    with pytest.raises(simfluence.UsageError, match="train-099"):
        simfluence.CurriculumSampler(plan, "train-099")
    with pytest.raises(simfluence.UsageError, match="segments"):
        simfluence.Plan.draw(4, steps=2, batch_size=1, learning_rate=1.0, segments=[5, 2])


def test_merge_maps_examples_by_key(tmp_path):
    for name, keys in (("one", ["a", "b"]), ("two", ["b", "c"])):
        with simfluence.Recorder(tmp_path / name, keys, ["x"], run=name) as recorder:
            recorder.log_initial([1.0])
            recorder.log_step([keys[1]], losses=[0.5])
    merged = simfluence.merge([tmp_path / "one", tmp_path / "two"], tmp_path / "all")
    assert merged.train_keys == ["a", "b", "c"]
    assert merged["two"].batches == [[2]] and merged["one"].batches == [[1]]
    opened = [simfluence.open(tmp_path / name) for name in ("one", "two")]
    assert simfluence.merge(opened, tmp_path / "again").ids == ["one", "two"]
    for one in (opened[0], opened[0].path, str(opened[0].path)):
        with pytest.raises(simfluence.UsageError, match="sequence of run sets"):
            simfluence.merge(one, tmp_path / "no")
    with simfluence.Recorder(tmp_path / "three", {"a": "other"}, ["x"]):
        pass
    with pytest.raises(simfluence.RunSetError, match='"a"'):
        simfluence.merge([tmp_path / "one", tmp_path / "three"], tmp_path / "no")
