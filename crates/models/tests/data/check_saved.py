"""Checks that transformers and PEFT read what `save_again` writes: the same logits, bit for bit.

Run beside make.py's checkpoints: python check_saved.py path/to/examples/save_again
"""
import pathlib
import subprocess
import sys
import tempfile

import peft
import torch
import transformers

from make import auto_class

HERE = pathlib.Path(__file__).parent
TOKENS = torch.tensor([[3, 3, 4, 1, 2, 6, 0, 5, 1, 18, 7, 7, 9, 2, 13, 12]])


def logits(folder, adapter=None):
    config = transformers.AutoConfig.from_pretrained(folder)
    model, info = auto_class(config).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    answer = dict(decoder_input_ids=TOKENS[:, :5]) if config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(TOKENS, **answer).logits


for config in sorted(HERE.glob("*/config.json")):
    folder = config.parent
    with tempfile.TemporaryDirectory() as saved:
        subprocess.run([sys.argv[1], folder, saved], check=True)
        assert torch.equal(logits(saved), logits(folder)), folder
    print(f"{folder.name}: read back, same logits")

for config in sorted(HERE.glob("*/adapter_config.json")):
    adapter = config.parent
    base = HERE / adapter.name.rpartition("_")[0]
    with tempfile.TemporaryDirectory() as saved:
        subprocess.run([sys.argv[1], base, saved, adapter], check=True)
        assert torch.equal(logits(base, saved), logits(base, adapter)), adapter
        assert not torch.equal(logits(base, saved), logits(base)), adapter
    print(f"{adapter.name}: read back, same logits")
