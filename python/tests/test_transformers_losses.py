"""Weights and losses with models that make their loss in other ways than decoders do."""

from __future__ import annotations

import copy

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from test_transformers import TRAIN, arguments, recorded, run_of

import simfluence
from simfluence.transformers import RecorderCallback

DRAW = torch.Generator().manual_seed(0)
TINY = dict(vocab_size=tiny.WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


def rows(count, labels):
    def one(place):
        ids = torch.randint(1, tiny.WORDS, (8,), generator=DRAW).tolist()
        return {"input_ids": ids, "labels": labels(place)}

    return [one(place) for place in range(count)]


#: The first of four has one target, the last seven.
TOKENS = rows(8, lambda i: [-100] * (7 - i % 4 * 2) + [5] * (1 + i % 4 * 2))
CLASSES = rows(9, lambda i: i % 3)
NUMBERS = rows(9, lambda i: i / 3)
SEVERAL = rows(9, lambda i: [1.0, 0.0, float(i % 2)])


def bert(kind, **settings):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **TINY, intermediate_size=16, max_position_embeddings=20, hidden_dropout_prob=0,
        attention_probs_dropout_prob=0, **settings,
    )  # fmt: skip
    return kind(config)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=tiny.WORDS, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def llama_classifier():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **TINY, intermediate_size=32, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        num_labels=3,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config)


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


PICTURES = [
    {"pixel_values": torch.randn(3, 8, 8, generator=DRAW), "labels": i % 3} for i in range(9)
]

MODELS = {
    "masked tokens": (lambda: bert(transformers.BertForMaskedLM), TOKENS),
    "classified tokens": (lambda: bert(transformers.BertForTokenClassification, num_labels=8), TOKENS),
    "encoder and decoder": (t5, TOKENS),
    "classes": (lambda: bert(transformers.BertForSequenceClassification, num_labels=3), CLASSES),
    "classes of a decoder": (llama_classifier, CLASSES),
    "regression": (lambda: bert(transformers.BertForSequenceClassification, num_labels=1), NUMBERS),
    "several labels": (
        lambda: bert(transformers.BertForSequenceClassification, num_labels=3), SEVERAL,
    ),
    "pictures": (vit, PICTURES),
}  # fmt: skip


def train(folder, model, callback, trainer=transformers.Trainer, collate=None, **settings):
    trained = trainer(
        model, arguments(folder / "out", **settings), train_dataset=callback.train_dataset,
        data_collator=collate or transformers.default_data_collator, callbacks=[callback],
    )  # fmt: skip
    trained.train()
    return trained


ONE_STEP = dict(
    max_steps=1, optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0.0,
    per_device_train_batch_size=4,
)  # fmt: skip


def real_shares(start, moved, examples, loss):
    """Shares `w` with `Σ_i w_i ∇L_i` in the direction of the step that was made."""
    gradients = []
    for one in examples:
        some = [p for p in start.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss(start, one), some, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(some, found, strict=True)]
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    gradients = torch.stack(gradients).T
    change = torch.cat(
        [
            (a - b).detach().flatten()
            for a, b in zip(start.parameters(), moved.parameters(), strict=True)
            if a.requires_grad
        ]
    ).double()
    shares = torch.linalg.lstsq(gradients, change[:, None]).solution[:, 0]
    assert (gradients @ shares - change).norm() < 1e-3 * change.norm()
    return (shares / shares.sum()).numpy()


def own_loss(model, example):
    return model(**transformers.default_data_collator([example]))["loss"]


@pytest.mark.parametrize("name", MODELS)
def test_ref_the_recorded_weights_are_those_of_the_step_that_was_made(tmp_path, name):
    make, examples = MODELS[name]
    start, model = make(), make()
    callback = RecorderCallback(tmp_path / "runs", examples, examples[:3], on_error="raise")
    accumulation = 2 if examples is TOKENS else 3
    train(tmp_path, model, callback, gradient_accumulation_steps=accumulation, **ONE_STEP)
    run = run_of(tmp_path)
    (batch,), (weights,) = run.batches, run.weights
    assert len(batch) == len(examples)
    weights = [1 / len(batch)] * len(batch) if weights is None else weights
    start.train()
    real = real_shares(start, model, [examples[one] for one in batch], own_loss)
    assert weights == pytest.approx(real, abs=1e-3)
    before = [own_loss(make().eval(), one).item() for one in examples[:3]]
    assert run.losses[0] == pytest.approx(before, abs=1e-5)


class Micro(transformers.Trainer):
    """Averages over each micro-batch on its own, whatever the model would do."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_ref_a_loss_of_the_trainers_own_has_the_weights_of_its_micro_batches(tmp_path):
    start, model = tiny.model(dropout=0.0), tiny.model(dropout=0.0)
    callback = recorded(tmp_path, eval_every=0)
    settings = dict(ONE_STEP, gradient_accumulation_steps=2)
    train(tmp_path, model, callback, trainer=Micro, collate=tiny.collate, **settings)
    (batch,), (weights,) = run_of(tmp_path).batches, run_of(tmp_path).weights
    start.train()
    real = real_shares(
        start, model, [TRAIN[one] for one in batch], lambda m, one: m(**tiny.collate([one])).loss
    )
    assert weights == pytest.approx(real, abs=1e-3)


class Tagger(transformers.PreTrainedModel):
    """A model of one's own whose labels are not shifted."""

    config_class = transformers.GPT2Config

    def __init__(self, config, offset=0.0):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        self.offset = offset
        self.post_init()

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.embed(input_ids)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            loss = loss + self.offset
        return {"loss": loss, "logits": logits}


def test_whether_labels_are_shifted_is_found_out_from_the_models_loss(tmp_path):
    model = Tagger(transformers.GPT2Config(vocab_size=tiny.WORDS))
    before = [own_loss(model, one).item() for one in TOKENS[:3]]
    callback = RecorderCallback(tmp_path / "runs", TOKENS, TOKENS[:3], on_error="raise")
    train(tmp_path, model, callback, max_steps=1)
    assert run_of(tmp_path).losses[0] == pytest.approx(before, abs=1e-5)


def test_a_loss_that_is_not_the_models_is_refused(tmp_path):
    model = Tagger(transformers.GPT2Config(vocab_size=tiny.WORDS), offset=1.0)
    callback = RecorderCallback(tmp_path / "runs", TOKENS, TOKENS[:3])
    with pytest.warns(RuntimeWarning, match="give example_loss"):
        train(tmp_path, model, callback, max_steps=1)


def test_prompt_tuning_of_peft_is_recorded(tmp_path):
    def tuned():
        torch.manual_seed(0)
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        return peft.get_peft_model(tiny.llama(), settings)

    model = tuned()
    train(tmp_path, model, recorded(tmp_path), collate=tiny.collate, max_steps=2)
    fresh = tuned().eval()
    with torch.no_grad():
        before = [fresh(**tiny.collate([row])).loss.item() for row in tiny.Texts(7, 2).rows]
    assert run_of(tmp_path).losses[0] == pytest.approx(before, abs=1e-5)


def test_labels_that_the_trainer_takes_away_give_no_losses_of_the_batch(tmp_path):
    callback = recorded(tmp_path, batch_loss=True)
    with pytest.warns(RuntimeWarning, match="gets no labels"):
        train(
            tmp_path, tiny.model(), callback, collate=tiny.collate, max_steps=2,
            label_smoothing_factor=0.1,
        )  # fmt: skip
    assert run_of(tmp_path).batch_losses == [None, None]


class Distilled(transformers.Trainer):
    """Gives its inputs to another model, which takes nothing else, and looks at their names."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        assert set(inputs) == {"input_ids", "attention_mask", "labels"}
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        Tagger(transformers.GPT2Config(vocab_size=tiny.WORDS))(**inputs)
        loss = model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss
        return (loss, None) if return_outputs else loss


def test_the_trainers_inputs_are_those_of_a_run_that_is_not_recorded(tmp_path):
    callback = recorded(tmp_path)
    train(tmp_path, tiny.model(), callback, trainer=Distilled, collate=tiny.collate)
    run = run_of(tmp_path)
    assert sorted(one for batch in run.batches for one in batch) == sorted([*range(22)] * 2)


def test_options_that_are_none_are_refused(tmp_path):
    for wrong in ({"weighting": "tokens"}, {"eval_every": 2.5}, {"eval_batch_size": 0}):
        with pytest.raises(simfluence.UsageError, match=next(iter(wrong))):
            recorded(tmp_path, **wrong)


class StopAt(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 7


class StopAfterEvaluation(transformers.TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop = True


@pytest.mark.parametrize("stop", ["step", "evaluation", "epoch"])
def test_the_last_step_is_evaluated_when_training_is_stopped(tmp_path, stop):
    callback, model = recorded(tmp_path, eval_every=5), tiny.model()
    settings = {
        "step": {},
        "evaluation": {"eval_strategy": "steps", "eval_steps": 7, "save_strategy": "steps", "save_steps": 7},
        "epoch": {"eval_strategy": "epoch"},
    }[stop]  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments(tmp_path / "out", **settings), data_collator=tiny.collate,
        train_dataset=callback.train_dataset, eval_dataset=TRAIN,
        callbacks=[callback, StopAt() if stop == "step" else StopAfterEvaluation()],
    )  # fmt: skip
    trainer.train()
    run = run_of(tmp_path)
    last = 6 if stop == "epoch" else 7
    assert run.curves().steps.tolist() == [0, 5, last] and len(run.batches) == last
    assert run.losses[-1] == pytest.approx(tiny.one_by_one(model, tiny.Texts(7, 2).rows), abs=1e-5)


class Break(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt


def test_a_run_goes_on_in_the_process_in_which_it_broke_off(tmp_path):
    saved = dict(save_strategy="steps", save_steps=5)

    def trainer(model, *more):
        callback = recorded(tmp_path, run="broken")
        return transformers.Trainer(
            model, arguments(tmp_path / "out", **saved), data_collator=tiny.collate,
            train_dataset=callback.train_dataset, callbacks=[callback, *more],
        )  # fmt: skip

    broken = trainer(tiny.model(), Break())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert run_of(tmp_path, "broken").status == "recording"
    trainer(tiny.model()).train(resume_from_checkpoint=True)
    run = run_of(tmp_path, "broken")
    assert run.status == "complete" and len(run.batches) == 12
    whole = recorded(tmp_path, run="whole")
    train(tmp_path, tiny.model(), whole, collate=tiny.collate)
    assert np.array_equal(run.losses, run_of(tmp_path, "whole").losses)
    assert copy.copy(run.batches) == run_of(tmp_path, "whole").batches


class Bare(torch.nn.Module):
    """A model that takes no labels."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(tiny.WORDS, tiny.WORDS)

    def forward(self, input_ids):
        return {"logits": self.embed(input_ids)}


class Outside(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"])
        logits, labels = outputs["logits"].flatten(0, 1), inputs["labels"].flatten()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return (loss, outputs) if return_outputs else loss


def test_a_model_without_labels_is_recorded(tmp_path):
    callback = RecorderCallback(tmp_path / "runs", TOKENS, TOKENS[:3], on_error="raise")
    settings = dict(max_steps=2, remove_unused_columns=False)
    train(tmp_path, Bare(), callback, trainer=Outside, **settings)
    assert run_of(tmp_path).losses.shape == (3, 3)
