"""How much memory does loading take at its highest?

In a process of its own: loading a checkpoint of N bytes in its own format must stay below 1.2 N
beyond what Python and torch already hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import copy_tokenizer

pytestmark = pytest.mark.slow

SHAPE = {
    "model_type": "llama",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "vocab_size": 8192,
    "max_position_embeddings": 64,
}
STATUS = Path("/proc/self/status")
# Writing 5 to clear_refs sets the high-water mark back to the present.
CODE = """
import sys
from pathlib import Path
import casestudy

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

casestudy.load("tiny", device="cpu")
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = casestudy.load(sys.argv[1], device="cpu", dtype=sys.argv[2])
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of some 100 MB in bfloat16."""
    d, d_mlp, d_vocab = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    shapes = {"model.embed_tokens.weight": (d_vocab, d), "lm_head.weight": (d_vocab, d)}
    shapes["model.norm.weight"] = (d,)
    for layer in range(SHAPE["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (d, d) for part in "qkvo"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (d_mlp, d) for part in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (d, d_mlp)}
        shapes |= {f"{at}.{where}_layernorm.weight": (d,) for where in ("input", "post_attention")}
    folder = tmp_path_factory.mktemp("large")
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    copy_tokenizer(folder)
    return folder


@pytest.mark.skipif(not STATUS.exists(), reason="the high-water mark is read from Linux's /proc")
@pytest.mark.parametrize(("dtype", "bound"), [("auto", 1.2), ("float32", 3.2)])
def test_peak(checkpoint: Path, dtype: str, bound: float) -> None:
    """Upcast, the file's own pages (which the system may drop) stand beside twice their size."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(checkpoint), dtype],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    size = (checkpoint / "model.safetensors").stat().st_size
    assert size > 90e6
    assert 0.5 * size < int(done.stdout) < bound * size
