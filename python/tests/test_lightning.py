from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from test_torch import DATA, TEST, example_loss, network

import simfluence
from simfluence.lightning import RecorderCallback
from simfluence.torch import DataLoader


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = network()
        self.seen = []

    def forward(self, inputs):
        return self.network(inputs)

    def training_step(self, batch, batch_idx):
        loss = example_loss(self, batch).mean()
        self.seen.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def fit(folder, callback=None, loader=DataLoader, module=None, **options):
    options = {"max_epochs": 2, **options}
    torch.manual_seed(7)
    module = module or Module()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[callback] if callback else [], **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    trainer.fit(module, loader(DATA, batch_size=4, shuffle=True, generator=generator))
    return module.seen


def recorded(folder, **options):
    return RecorderCallback(folder / "runs", TEST, example_loss, on_error="raise", **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_recorded_run_is_bit_for_bit_the_run_that_is_not(tmp_path, accumulation):
    options = {"accumulate_grad_batches": accumulation}
    plain = fit(tmp_path, loader=torch.utils.data.DataLoader, **options)
    assert fit(tmp_path, recorded(tmp_path), **options) == plain
    run = simfluence.open(tmp_path / "runs")["run-000"]
    steps = 10 if accumulation == 1 else 6
    assert run.status == "complete" and len(run.batches) == steps
    assert sorted(one for b in run.batches for one in b) == sorted([*range(20)] * 2)
    assert run.learning_rates == pytest.approx([0.1 * 0.5**t for t in range(steps)])
    assert run.info["optimizer"]["name"] == "adam"
    if accumulation == 2:
        assert run.steps.to_polars()["batch_micro"].to_list()[0] == [0] * 4 + [1] * 4


@pytest.mark.filterwarnings("ignore")
def test_ref_test_losses_are_those_of_the_module(tmp_path):
    module = Module()
    fit(tmp_path, recorded(tmp_path, eval_every=4), module=module)
    run = simfluence.open(tmp_path / "runs")["run-000"]
    assert run.curves().steps.tolist() == [0, 4, 8, 10]
    module.eval()
    with torch.no_grad():
        after = torch.cat([example_loss(module, batch) for batch in TEST]).numpy()
    assert np.allclose(run.losses[-1], after)


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_that_ends_early_leaves_no_ids_behind(tmp_path):
    fit(tmp_path, recorded(tmp_path), limit_train_batches=3)
    run = simfluence.open(tmp_path / "runs")["run-000"]
    assert len(run.batches) == 6 and all(len(batch) == 4 for batch in run.batches)
    epochs = [
        [one for batch in part for one in batch] for part in (run.batches[:3], run.batches[3:])
    ]
    assert all(len(set(epoch)) == 12 for epoch in epochs)


def test_a_loader_of_torch_is_a_warning_and_no_recording(tmp_path):
    callback = RecorderCallback(tmp_path / "runs", TEST, example_loss)
    with pytest.warns(RuntimeWarning, match=r"simfluence\.torch\.DataLoader"):
        seen = fit(tmp_path, callback, loader=torch.utils.data.DataLoader)
    assert len(seen) == 10


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 7


@pytest.mark.filterwarnings("ignore")
def test_the_last_step_is_evaluated_when_training_is_stopped(tmp_path):
    module = Module()
    torch.manual_seed(7)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_epochs=3,
        callbacks=[recorded(tmp_path, eval_every=6), Stop()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(DATA, batch_size=4, shuffle=True))
    run = simfluence.open(tmp_path / "runs")["run-000"]
    assert run.curves().steps.tolist() == [0, 6, len(run.batches)]
    module.eval()
    with torch.no_grad():
        after = torch.cat([example_loss(module, batch) for batch in TEST]).numpy()
    assert np.allclose(run.losses[-1], after)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_test_batches_have_the_precision_of_the_module(tmp_path, precision):
    module = Module()
    fit(tmp_path, recorded(tmp_path), module=module, precision=precision, max_epochs=1)
    run = simfluence.open(tmp_path / "runs")["run-000"]
    assert run.status == "complete" and len(run.batches) == 5
    assert np.isfinite(run.losses).all() and run.losses.shape == (6, 5)


@pytest.mark.filterwarnings("ignore")
def test_loaders_may_be_made_anew_for_every_epoch(tmp_path):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(DATA, batch_size=4, shuffle=True)

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_epochs=3,
        callbacks=[recorded(tmp_path)], reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(Module(), datamodule=Data())
    run = simfluence.open(tmp_path / "runs")["run-000"]
    assert run.status == "complete"
    assert sorted(one for b in run.batches for one in b) == sorted([*range(20)] * 3)


def test_test_batches_that_cannot_be_counted_are_a_warning(tmp_path):
    callback = RecorderCallback(tmp_path / "runs", [object()], example_loss)
    with pytest.warns(RuntimeWarning, match="how many examples"):
        assert len(fit(tmp_path, callback)) == 10
