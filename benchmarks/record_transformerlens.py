"""What does TransformerLens 3.9.0, the last version with HookedTransformer, compute?

Runs tests/compat/notebook_calls.py in it and stores what comes out, for the suite to compare with:

    python3 -m venv .venv-transformerlens-3
    .venv-transformerlens-3/bin/pip install torch==2.13.0
    .venv-transformerlens-3/bin/pip install transformer-lens==3.9.0
    .venv-transformerlens-3/bin/python benchmarks/record_transformerlens.py

The model is a random GPT-2 of two layers, made from a seed by tests/helpers.py. With
`--full FOLDER` (a checkpoint of GPT-2's shape) and `--out FILE` it records every hook of one run
of that one instead, for tests/compat/test_full_size.py; `--bridge`, in an environment with 4.x,
does so of a TransformerBridge. TransformerLens downloads nothing: its loader finds the
configuration in a folder called gpt2.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
warnings.simplefilter("ignore")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tests.compat import notebook_calls  # noqa: E402
from tests.helpers import write_gpt2  # noqa: E402
from transformers import AutoTokenizer, GPT2LMHeadModel  # noqa: E402

DATA = ROOT / "tests" / "compat" / "data"


def tokenizer_folder(folder: Path) -> Path:
    """A folder called gpt2 with the checkpoint's configuration and tokenizer, made here."""
    config = json.loads((folder / "config.json").read_text())
    # its reader of configurations asks for GPT-2's older name
    config["n_ctx"] = config["n_positions"]
    here = Path("gpt2")
    here.mkdir(exist_ok=True)
    (here / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*token*"):
        shutil.copy(file, here)
    if not (here / "tokenizer_config.json").is_file():
        ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (here / "tokenizer_config.json").write_text(json.dumps({**ends, **kind}))
    return here


def loader(folder: Path) -> Callable[..., Any]:
    """A function that loads this checkpoint as a HookedTransformer."""
    from transformer_lens import HookedTransformer

    here = tokenizer_folder(folder)

    def load(**options: Any) -> Any:
        network = GPT2LMHeadModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(here)
        return HookedTransformer.from_pretrained(
            "gpt2", hf_model=network, tokenizer=tokenizer, device="cpu", **options
        )

    return load


def names() -> SimpleNamespace:
    """TransformerLens's names, as the notebooks' functions want them."""
    import transformer_lens
    from transformer_lens import patching, utils

    return SimpleNamespace(
        **{n: getattr(transformer_lens, n) for n in ("ActivationCache", "HookedTransformer")},
        patching=patching,
        utils=utils,
    )


def record_small() -> None:
    """Every scenario, into tests/compat/data."""
    tl = names()
    folder = write_gpt2(Path(tempfile.mkdtemp()), **notebook_calls.SHAPE)
    load = loader(folder)
    found = {}
    for scenario in notebook_calls.SCENARIOS:
        for name, x in scenario(tl, load).items():
            x = x.detach()
            x = x.to(torch.int32) if x.dtype == torch.long else x
            found[f"{scenario.__name__}/{name}"] = x.clone().contiguous()
    save_file(found, DATA / "transformerlens-3.9.0.safetensors")
    (DATA / "labels.json").write_text(json.dumps(notebook_calls.labels(tl, load), indent=1) + "\n")
    size = sum(x.numel() * x.element_size() for x in found.values())
    print(f"{len(found)} tensors, {size / 1000:.0f} kB", file=sys.stderr)


def record_full(folder: Path, out: Path, bridge: bool) -> None:
    """Every hook of one run of a checkpoint of GPT-2's shape."""
    text = notebook_calls.FULL_SIZE_PROMPT
    if bridge:
        from transformer_lens.model_bridge import TransformerBridge

        network = GPT2LMHeadModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder))
        model = TransformerBridge.boot_transformers(
            str(folder), hf_model=network, tokenizer=tokenizer, device="cpu"
        )
        model.enable_compatibility_mode()
    else:
        model = loader(folder)()
    tokens = model.to_tokens(text)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    found = {name: x.contiguous().clone() for name, x in cache.items()}
    save_file({**found, "logits": logits.contiguous(), "tokens": tokens}, out)


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", type=Path, help="a checkpoint of GPT-2's shape")
    parser.add_argument("--out", type=Path, help="where to store its run")
    parser.add_argument("--bridge", action="store_true", help="4.x's TransformerBridge instead")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # the models are small: a second thread only waits for the first
    full = asked.full and asked.full.resolve()
    out = asked.out and asked.out.resolve()
    os.chdir(tempfile.mkdtemp())
    if full:
        record_full(full, out, asked.bridge)
    else:
        record_small()


if __name__ == "__main__":
    main()
