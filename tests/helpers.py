"""Small checkpoints made on the spot: random, but with no bias, norm or position left trivial."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from casestudy import cli
from casestudy.model.loading import BUNDLED

TOKENIZER = BUNDLED / "tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def copy_tokenizer(folder: Path) -> None:
    """Put the bundled model's tokenizer (8192 tokens, BOS prepended) into a folder."""
    for name in TOKENIZER_FILES:
        shutil.copy(TOKENIZER / name, folder / name)


def gpt2_config(
    *,
    n_layer: int = 2,
    n_head: int = 4,
    n_embd: int = 32,
    n_positions: int = 64,
    vocab_size: int = 8192,
) -> dict[str, Any]:
    """The config.json of a small GPT-2."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "n_positions": n_positions,
        "vocab_size": vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 8191,
        "eos_token_id": 8191,
    }


def gpt2_tensors(config: dict[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the checkpoint's names, scaled so that every part matters."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=rng) * std + mean

    d, d_mlp = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    tensors = {
        "wte.weight": normal(config["vocab_size"], d, std=0.3),
        "wpe.weight": normal(config["n_positions"], d, std=0.3),
    }

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = normal(d, std=0.3, mean=1.0)
        tensors[f"{name}.bias"] = normal(d, std=0.3)

    def linear(name: str, m: int, n: int) -> None:
        tensors[f"{name}.weight"] = normal(m, n, std=m**-0.5)
        tensors[f"{name}.bias"] = normal(n, std=0.2)

    for i in range(config["n_layer"]):
        norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", d, 3 * d)
        linear(f"h.{i}.attn.c_proj", d, d)
        norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.c_fc", d, d_mlp)
        linear(f"h.{i}.mlp.c_proj", d_mlp, d)
    norm("ln_f")
    return tensors


def write_gpt2(folder: Path, *, seed: int = 0, **shape: int) -> Path:
    """Write a small random GPT-2 checkpoint with the bundled tokenizer; see `gpt2_config`."""
    config = gpt2_config(**shape)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(gpt2_tensors(config, seed=seed), folder / "model.safetensors")
    copy_tokenizer(folder)
    return folder


def perturb_(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Move every bias and norm of a transformers model off its trivial initial value."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
                parameter += (0.2 * noise).to(parameter.dtype)


def gpt2_tokenizer_json(files: Path, folder: Path) -> Path:
    """GPT-2's tokenizer as a tokenizer.json, from its vocab.json and merges.txt."""
    bpe = models.BPE.from_file(str(files / "vocab.json"), str(files / "merges.txt"))
    tokenizer = HFTokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `casestudy ARGUMENTS`."""
    before, interrupted = sys.argv, signal.getsignal(signal.SIGINT)
    sys.argv = ["casestudy", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    else:
        status = 0
    finally:
        sys.argv = before
        signal.signal(signal.SIGINT, interrupted)
    out, err = capsys.readouterr()
    return status, out, err
