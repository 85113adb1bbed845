"""Writes the tiny checkpoints of this folder with what transformers makes of them.

Run with transformers 5.23, peft 0.21, tokenizers 0.23, torch 2.13 and safetensors 0.8:
python make.py

Every folder is one randomly initialised model, saved by transformers in 32 bits, with
`reference.safetensors` beside it:

- `logits`: at the positions that predict answer tokens, examples one after the other,
- `losses`: mean negative log-likelihood per answer token of each example,
- `gradient/NAME`: of the sum of the losses, in the checkpoint's own shapes,
- `step/NAME`: the parameters after one step of torch.optim.AdamW on the mean loss with a fresh
  state (learning rate 1e-4, eps 1e-5, the other constants PyTorch's), kept in 32 bits.

All of it is computed in 64 bits from the 32-bit parameters. transformers rounds to 32 bits in norms,
rotary angles and softmax; `torch.float32` is replaced by `torch.float64` while it computes, so that
its own code runs in 64 bits throughout. `rotary.json` has its frequencies of rotary positions.

Folders named `…_lora` or `…_ia3` have an adapter by PEFT for the checkpoint before the `_`; their reference is of
both together, its gradients and step of the adapter alone.

Of an encoder-decoder (T5) the encoder reads an example's tokens up to its answer, the decoder the
start token and the answer. `buckets.json` has T5's buckets of relative positions.

`text` is a checkpoint with a byte-level tokenizer, for tests that start from text; `metaspace.json`
is a tokenizer in the manner of Llama's. `encodings.json` has what the tokenizers library makes of
some texts by both. `t5_text` is a T5 with a unigram tokenizer, `t5_encodings.json` what
transformers' tokenizer makes of some prompts and answers by it.
"""
import json
import pathlib
import shutil

import peft
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from safetensors.torch import save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention

HERE = pathlib.Path(__file__).parent
VOCABULARY, CONTEXT = 19, 24
EXAMPLES = [
    ([1, 5, 2, 0, 6, 11, 4], 5),
    ([3, 3, 4, 1, 2, 6, 0, 5, 1, 18, 7, 7, 9, 2, 13, 12], 9),
    ([6, 0, 2], 1),
    ([8, 14, 15, 16, 17, 10, 1, 2, 3, 4], 9),
]
SIZES = dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=8,
             num_hidden_layers=2, num_attention_heads=2, bos_token_id=0, eos_token_id=0,
             pad_token_id=None)
GROUPED = dict(SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
               intermediate_size=12)

T5 = dict(vocab_size=VOCABULARY, d_model=8, d_kv=5, d_ff=12, num_layers=2, num_heads=3,
          relative_attention_num_buckets=8, relative_attention_max_distance=10,
          decoder_start_token_id=0, eos_token_id=0)

LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=12)
CONFIGS = {
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=8, n_layer=2, n_head=2, n_inner=12,
        bos_token_id=0, eos_token_id=0),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=12, word_embed_proj_dim=8),
    "opt_post_norm": transformers.OPTConfig(
        **SIZES, ffn_dim=12, word_embed_proj_dim=6, do_layer_norm_before=False),
    "gpt_neox": transformers.GPTNeoXConfig(
        **dict(SIZES, hidden_size=16), intermediate_size=12,
        rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5)),
    "gpt_neox_sequential": transformers.GPTNeoXConfig(
        **SIZES, intermediate_size=12, use_parallel_residual=False, attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.0,
                             partial_rotary_factor=1.0)),
    "llama": transformers.LlamaConfig(**GROUPED, rope_parameters=LLAMA3),
    "mistral": transformers.MistralConfig(
        **GROUPED, sliding_window=5,
        rope_parameters=dict(rope_type="default", rope_theta=100.0)),
    "qwen2": transformers.Qwen2Config(
        **{k: v for k, v in dict(GROUPED, hidden_size=16).items() if k != "head_dim"},
        use_sliding_window=True,
        sliding_window=4, max_window_layers=1, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0,
                             original_max_position_embeddings=6)),
    "phi3": transformers.Phi3Config(
        **{k: v for k, v in dict(GROUPED, hidden_size=16).items() if k != "head_dim"},
        sliding_window=6,
        rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5)),
    "t5_gated": transformers.T5Config(
        **T5, num_decoder_layers=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5": transformers.T5Config(**T5),
}

ROTARY = [
    dict(rope_type="linear", rope_theta=10000.0, factor=2.5),
    dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
         high_freq_factor=4.0, original_max_position_embeddings=8192),
    dict(rope_type="yarn", rope_theta=1000000.0, factor=2.0,
         original_max_position_embeddings=32768),
    dict(rope_type="yarn", rope_theta=10000.0, factor=16.0, beta_fast=24.0, beta_slow=2.0,
         mscale=0.8, mscale_all_dim=1.3, truncate=False, original_max_position_embeddings=4096),
    dict(rope_type="yarn", rope_theta=10000.0, factor=16.0, attention_factor=1.25,
         original_max_position_embeddings=4096),
]


class In64Bits:
    """Replaces 32-bit floats by 64-bit ones in whatever code runs meanwhile."""

    def __enter__(self):
        self.kept = torch.float32, torch.float, torch.Tensor.float
        torch.float32 = torch.float = torch.float64
        torch.Tensor.float = torch.Tensor.double
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.float32, torch.float, torch.Tensor.float = self.kept
        torch.set_default_dtype(torch.float32)


def auto_class(config):
    """What transformers makes of a config."""
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def untied(model):
    """The model with an output matrix of its own, which transformers 5 only gives a T5 that it
    loads."""
    if model.config.model_type == "t5" and not model.config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def initial(config, seed):
    """A model whose every part matters: nothing is 0 or 1 as at an ordinary start."""
    model = untied(auto_class(config).from_config(config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.2 * values if is_gain else 0.3 * values)
    return model


def answers(model, tokens, start):
    if model.config.is_encoder_decoder:
        read = [model.config.decoder_start_token_id, *tokens[start:-1]]
        logits = model(torch.tensor([tokens[:start]]), decoder_input_ids=torch.tensor([read]),
                       use_cache=False).logits[0]
    else:
        logits = model(torch.tensor([tokens[:-1]]), use_cache=False).logits[0, start - 1:]
    return logits, torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[start:]))


def stored_name(model, name):
    """What the checkpoint calls a parameter; transformers renames GPT-NeoX's output matrix."""
    is_output = model.config.model_type == "gpt_neox" and name == "lm_head.weight"
    name = "embed_out.weight" if is_output else name
    return name.removeprefix("base_model.model.").replace(".default.", ".").removesuffix(".default")


def in_32_bits(folder, adapter=None):
    """A checkpoint, or one with an adapter, as transformers and PEFT load it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = auto_class(config).from_pretrained(folder, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapter) if adapter else model


def in_64_bits(single, folder, adapter=None):
    """The same with the values of `single`; made anew, because the rotary frequencies of a loaded
    model were computed in 32 bits. To be called within In64Bits."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = untied(auto_class(config).from_config(
        config, dtype=torch.float64, attn_implementation="eager")).eval()
    if adapter:
        model = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(adapter)).eval()
        model.set_adapter("default", inference_mode=False)
    model.load_state_dict(single.state_dict())
    return model


def reference(folder, adapter=None):
    """Of a checkpoint, or of one with an adapter: then `gradient` and `step` are the adapter's."""
    single = in_32_bits(folder, adapter)
    with In64Bits():
        model = in_64_bits(single, folder, adapter)
        results = [answers(model, *example) for example in EXAMPLES]
        losses = torch.stack([loss for _, loss in results])
        losses.sum().backward()
        saved = {
            "logits": torch.cat([logits for logits, _ in results]).detach(),
            "losses": losses.detach(),
        }
        assert all(value.dtype == torch.float64 for value in saved.values())
        parameters = {stored_name(model, name): p
                      for name, p in model.named_parameters() if p.requires_grad}
        assert all(p.dtype == torch.float64 for p in parameters.values())
        for name, parameter in parameters.items():
            saved[f"gradient/{name}"] = parameter.grad.clone()
            parameter.grad /= len(EXAMPLES)
        torch.optim.AdamW(parameters.values(), lr=1e-4, eps=1e-5).step()
        steps = {f"step/{name}": p.detach().clone() for name, p in parameters.items()}
    saved.update({name: value.to(torch.float32) for name, value in steps.items()})
    saved = {name: value.contiguous() for name, value in saved.items()}
    save_file(saved, (adapter or folder) / "reference.safetensors")


def buckets():
    rows, distances = [], torch.arange(-300, 301)
    for count, most in [(32, 128), (8, 10), (16, 40), (64, 256)]:
        for causal in (False, True):
            expected = T5Attention._relative_position_bucket(distances, not causal, count, most)
            rows.append(dict(buckets=count, max_distance=most, is_causal=causal,
                             first=distances[0].item(), expected=expected.tolist()))
    (HERE / "buckets.json").write_text(json.dumps(rows) + "\n")


def rotary():
    rows = []
    with In64Bits():
        for parameters in ROTARY:
            config = transformers.LlamaConfig(
                hidden_size=64, num_attention_heads=2, max_position_embeddings=65536,
                rope_parameters=dict(parameters))
            frequencies, amplitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
            assert frequencies.dtype == torch.float64
            rows.append(dict(parameters=parameters, frequencies=frequencies.tolist(),
                             amplitude=amplitude))
    (HERE / "rotary.json").write_text(json.dumps(rows, indent=1) + "\n")


ADAPTERS = {
    "gpt2_lora": ("gpt2", peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True,
        task_type="CAUSAL_LM")),
    "llama_lora": ("llama", peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM")),
    "phi3_lora": ("phi3", peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["qkv_proj", "gate_up_proj"], task_type="CAUSAL_LM")),
    "gpt2_ia3": ("gpt2", peft.IA3Config(task_type="CAUSAL_LM")),
    "llama_ia3": ("llama", peft.IA3Config(task_type="CAUSAL_LM")),
    "opt_ia3": ("opt", peft.IA3Config(
        target_modules=["k_proj", "v_proj", "fc1", "fc2"], feedforward_modules=["fc2"],
        task_type="CAUSAL_LM")),
    "gpt_neox_ia3": ("gpt_neox", peft.IA3Config(task_type="CAUSAL_LM")),
    "t5_lora": ("t5", peft.LoraConfig(r=2, lora_alpha=3, task_type="SEQ_2_SEQ_LM")),
    "t5_gated_ia3": ("t5_gated", peft.IA3Config(
        target_modules=["k", "v", "wi_1"], feedforward_modules=[], task_type="SEQ_2_SEQ_LM")),
}


def adapter(name, seed):
    base, config = ADAPTERS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = in_32_bits(HERE / base)
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                values = torch.randn(parameter.shape, generator=generator)
                is_factor = config.peft_type == peft.PeftType.IA3
                parameter.copy_(1 + 0.3 * values if is_factor else 0.15 * values)
    # Where the base model lies on the machine that ran this is nobody's business.
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    reference(HERE / base, folder)


LINES = [
    "Question: what follows three? Answer: four.",
    "Question: what comes before nine? Answer: eight.",
    "The answer to the question is seven, and what follows is eight.",
]
TEXTS = [
    ("Question: what follows two? Answer:", " three."),
    ("what  follows\n\n  12345's ", "answer, isn't it?"),
    ("gr\u00fc\u00dfe \u4f60\u597d ", "\U0001f600!"),
    ("Quest", "ion"),
]


def byte_level():
    """In the manner of GPT-2."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def metaspace():
    """In the manner of Llama 2, with a token in front of every text and one behind."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    return tokenizer


NUMBERS = ("one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
           "fifteen")


def unigram():
    """In the manner of T5, with a token behind every text."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator([*LINES, NUMBERS], trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def encodings(tokenizer):
    rows = []
    for prompt, answer in TEXTS:
        encoding = tokenizer.encode(prompt + answer)
        # Offsets count characters in Python.
        start = next(k for k, (_, end) in enumerate(encoding.offsets) if end > len(prompt))
        plain = tokenizer.encode(prompt, add_special_tokens=False).ids
        rows.append(dict(prompt=prompt, answer=answer, tokens=encoding.ids, answer_start=start,
                         of_prompt=plain, decoded=tokenizer.decode(plain, False)))
    return rows


def with_tokenizer(name, config, seed, tokenizer):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    initial(config, seed).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def text():
    tokenizer, other = byte_level(), metaspace()
    config = transformers.LlamaConfig(**dict(
        GROUPED, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64))
    with_tokenizer("text", config, 100, tokenizer)
    other.save(str(HERE / "metaspace.json"), pretty=False)
    rows = dict(byte_level=encodings(tokenizer), metaspace=encodings(other))
    (HERE / "encodings.json").write_text(json.dumps(rows, indent=1) + "\n")


def t5_text():
    """A checkpoint with what transformers' T5 tokenizer makes of prompts and answers."""
    tokenizer = unigram()
    config = transformers.T5Config(**dict(T5, vocab_size=tokenizer.get_vocab_size(), eos_token_id=1))
    with_tokenizer("t5_text", config, 101, tokenizer)
    fast = transformers.T5Tokenizer.from_pretrained(HERE / "t5_text")
    rows = []
    for prompt, answer in [("Question: what follows two?", "three"), ("what  comes\nbefore 9?", "x")]:
        both = fast(prompt, text_target=answer)
        rows.append(dict(prompt=prompt, answer=answer, source=both["input_ids"],
                         target=both["labels"]))
    (HERE / "t5_encodings.json").write_text(json.dumps(rows, indent=1) + "\n")


def main():
    for seed, (name, config) in enumerate(CONFIGS.items()):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        initial(config, seed).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        reference(folder)
    for seed, name in enumerate(ADAPTERS):
        adapter(name, 200 + seed)
    rotary()
    buckets()
    text()
    t5_text()
    (HERE / "examples.json").write_text(json.dumps(EXAMPLES) + "\n")


if __name__ == "__main__":
    main()
