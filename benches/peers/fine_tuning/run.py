"""Fine-tuning and evaluating against transformers and PyTorch: seconds and memory, side by side.

    run.py OUR_PROGRAM [--model FOLDER] [--threads 2] [--rounds 3] [--steps 12]

Both sides do the same job, in turns, each in a process of its own: a Llama-style decoder of 10
million parameters (random weights unless a folder is given), batches of 8, AdamW, all parameters or
LoRA of rank 8, on texts of which every token carries loss, and on prompts with a short answer. The
losses of the test examples after training must agree to 5e-3, or nothing is printed; memory is
measured with evaluations in the smallest of the batch sizes.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

KINDS = {
    "texts of 48 to 96 tokens": lambda draw: (draw.randint(48, 96), None),
    "prompts of 48 to 96 tokens, answers of 2": lambda draw: (draw.randint(50, 98), 2),
}


def make_model(folder):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=192,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_adapter(model, folder):
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)


def examples(kind, count, vocabulary, seed):
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        length, answer = KINDS[kind](draw)
        tokens = [draw.randrange(1, vocabulary) for _ in range(length)]
        found.append({"tokens": tokens, "answer_start": length - answer if answer else 1})
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ours")
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    here = pathlib.Path(__file__).parent
    programs = {"ours": [args.ours], "theirs": [sys.executable, str(here / "theirs.py")]}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = args.model
        if model is None:
            model = str(folder / "model")
            make_model(model)
        make_adapter(model, folder / "lora")
        vocabulary = json.loads((pathlib.Path(model) / "config.json").read_text())["vocab_size"]
        print("| what | trained | ours | theirs | ratio |\n| --- | --- | ---: | ---: | ---: |")
        for kind in KINDS:
            for method, adapter in (("all parameters", None), ("LoRA", str(folder / "lora"))):
                compare(args, programs, folder, model, adapter, vocabulary, kind, method)


def compare(args, programs, folder, model, adapter, vocabulary, kind, method):
    draw = random.Random(2)
    job = {
        "model": model,
        "adapter": adapter,
        "train": examples(kind, 128, vocabulary, 0),
        "test": examples(kind, 100, vocabulary, 1),
        "batches": [draw.sample(range(128), 8) for _ in range(args.steps)],
        "learning_rate": 1e-3,
        "threads": args.threads,
        # 8 is the default of transformers' Trainer.
        "evaluation_batches": [8, 16, 32, 64],
        "evaluations": 3,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    seen = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, command in programs.items():
            done = subprocess.run([*command, path], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{name} failed:\n{done.stderr}")
            seen[name].append(json.loads(done.stdout.splitlines()[-1]))
    pairs = zip(seen["ours"][0]["losses"], seen["theirs"][0]["losses"])
    apart = max(abs(a - b) for a, b in pairs)
    if apart > 5e-3:
        sys.exit(f"{kind}, {method}: test losses differ by {apart:.2g} after training")

    def row(what, number, unit, scale=1.0, digits=3):
        ours, theirs = (number(seen[name]) * scale for name in ("ours", "theirs"))
        cells = f"{ours:.{digits}f} {unit} | {theirs:.{digits}f} {unit} | {theirs / ours:.2f}×"
        print(f"| {what}, {kind} | {method} | {cells} |", flush=True)

    def median(field):
        # The first steps warm caches up; the fastest round has least of the machine's other work.
        return lambda runs: min(statistics.median(run[field][1:]) for run in runs)

    def evaluation(sizes):
        times = lambda run: [run["evaluation_seconds"][k][1:] for k in sizes]
        return lambda runs: min(statistics.median(of_size) for run in runs for of_size in times(run))

    sizes = job["evaluation_batches"]
    row("a step of 8", median("step_seconds"), "s")
    row("evaluating 100, each at its best batch size", evaluation(range(len(sizes))), "s")
    for k, size in enumerate(sizes):
        row(f"evaluating 100 in batches of {size}", evaluation([k]), "s")
    row("peak memory", lambda runs: min(r["peak_mib"] for r in runs), "MiB", digits=0)
    above = lambda runs: min(r["peak_mib"] - r["start_mib"] for r in runs)
    row("peak memory above the loaded model", above, "MiB", digits=0)
    print(f"{kind}, {method}: test losses agree to {apart:.1e}", file=sys.stderr)


main()
