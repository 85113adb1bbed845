"""What two processes do in test_distributed.py: python distributed_run.py FOLDER [plain]."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import tiny
import torch
import transformers

from simfluence.transformers import RecorderCallback

torch.set_num_threads(1)
folder, mode = Path(sys.argv[1]), sys.argv[2]
train, test = tiny.Texts(24, 1), tiny.Texts(7, 2)
options = {}
if mode == "failing" and os.environ["RANK"] == "1":
    options["example_loss"] = lambda outputs, batch: 1 / 0
callback = RecorderCallback(folder / "runs", train, test, eval_every=2, **options)
arguments = transformers.TrainingArguments(
    output_dir=str(folder / "out"), per_device_train_batch_size=3, gradient_accumulation_steps=2,
    max_steps=4, learning_rate=1e-2, report_to=[], save_strategy="no", disable_tqdm=True,
    logging_steps=1, seed=5, use_cpu=True, ddp_backend="gloo", logging_nan_inf_filter=False,
)  # fmt: skip
trainer = transformers.Trainer(
    tiny.model(), arguments, data_collator=tiny.collate,
    train_dataset=train if mode == "plain" else callback.train_dataset,
    callbacks=[] if mode == "plain" else [callback],
)  # fmt: skip
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
if os.environ["RANK"] == "0":
    state = {k: v.tolist() for k, v in trainer.model.state_dict().items() if "ln_f" in k}
    (folder / f"{mode}.json").write_text(json.dumps({"losses": losses, "state": state}))
