"""What a run set says about a run, as torch knows it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def optimizer_settings(optimizer: Any) -> dict[str, Any] | None:
    """Describe a torch optimiser as a run set does; `None` for one that the format does not know."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    first = optimizer.param_groups[0]
    if any(first.get(name) for name in ("maximize", "amsgrad", "centered")):
        return None
    # Weight decay is usually off for norms and biases, which come in a group of their own.
    decay = max(float(group.get("weight_decay") or 0.0) for group in optimizer.param_groups)
    name = type(optimizer).__name__.lower()
    if name == "sgd":
        names = ("momentum", "dampening", "nesterov")
        return {"name": "sgd", **{k: first[k] for k in names}, "weight_decay": decay}
    if name in ("adam", "adamw"):
        beta1, beta2 = (float(beta) for beta in first["betas"])
        decoupled = name == "adamw" or first.get("decoupled_weight_decay", False)
        return {
            "name": "adamw" if decoupled else "adam",
            "beta1": beta1,
            "beta2": beta2,
            "eps": first["eps"],
            "weight_decay": decay,
        }
    if name == "rmsprop":
        names = ("alpha", "eps", "momentum")
        return {"name": "rmsprop", **{k: first[k] for k in names}, "weight_decay": decay}
    if name == "adafactor" and "beta2_decay" in first:
        smallest, floor = first["eps"]
        return {
            "name": "adafactor",
            "beta2_decay": first["beta2_decay"],
            "eps1": torch.finfo(torch.float32).eps if smallest is None else smallest,
            "eps2": floor,
            "d": first["d"],
            "weight_decay": decay,
        }
    return None


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def run_settings(model: torch.nn.Module) -> dict[str, Any]:
    """What a run set says about a run, as far as the model and torch know it."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return {
        "base_model": fingerprint(model),
        "trainable_parameters": trainable,
        "threads": torch.get_num_threads(),
        "device": str(parameters[0].device) if parameters else "cpu",
        "software": {"torch": torch.__version__},
    }
