"""How does a run survive a kill, a full disk and a changed mind?

A checkpoint is one safetensors file (weights, optimizer state) whose header carries the run's
configuration and counters as JSON; no pickles. It is written beside its final name, flushed to the
disk and renamed, so that whatever happens the previous one is whole. The last two are kept.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import CheckpointError
from .model import ModelConfig, Parameters

KEPT = 2


@dataclass
class Checkpoint:
    """Everything a run needs to go on."""

    parameters: Parameters
    optimizer: Parameters
    counters: dict[str, Any]


def write_atomically(path: Path, data: bytes) -> None:
    """`data` at `path`, or the file that was there before; never half of either."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written ({error.strerror}; {len(data) / 1e6:.0f} MB needed). "
            f"What was there before is untouched. Try: free space, then start the command again."
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"))


def save_checkpoint(folder: Path, checkpoint: Checkpoint, config: dict[str, Any]) -> Path:
    """Writes one checkpoint, then drops all but the last two."""
    tensors = {f"parameters/{name}": value for name, value in checkpoint.parameters.items()}
    tensors |= {f"optimizer/{name}": value for name, value in checkpoint.optimizer.items()}
    header = {"config": json.dumps(config), "counters": json.dumps(checkpoint.counters)}
    path = folder / f"checkpoint-{checkpoint.counters['step']:07d}.safetensors"
    write_atomically(path, save(tensors, header))
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def load_checkpoint(path: Path, config: dict[str, Any], model: ModelConfig) -> Checkpoint:
    """Reads one checkpoint, refused when it was made under another configuration."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            stored, counters = json.loads(header["config"]), json.loads(header["counters"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of this script ({error}). Try: remove it; the one before "
            f"it is used then."
        ) from error
    differences = model.difference(stored.get("model", {})) + [
        f"{name} is {stored.get(name)!r} there and {config.get(name)!r} here"
        for name in sorted({*config, *stored} - {"model"})
        if stored.get(name) != config.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} is of another configuration: " + "; ".join(differences) + ". Try: the flags "
            "it was made with, or another --run folder to start afresh."
        )

    def part(prefix: str) -> Parameters:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    return Checkpoint(part("parameters/"), part("optimizer/"), counters)


def float16_file(parameters: Parameters) -> bytes:
    """The weights as `transformers` stores a GPT-2: float16, tied head left out."""
    half = {name: value.to(torch.float16).contiguous() for name, value in parameters.items()}
    return save(half, {"format": "pt"})
