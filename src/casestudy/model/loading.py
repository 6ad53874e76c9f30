"""Where do a model's parameters come from, and are they whole?

`load` reads the bundled model, a directory, or a checkpoint from the Hugging Face hub or its local
cache. Weights come only from safetensors files; no code and no pickle that came with a checkpoint
is ever run, and nothing is rewritten: values are as the checkpoint has them, in the dtype asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from casestudy.errors import ModelError
from casestudy.model.families import FAMILIES, read_config
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer
from casestudy.model.weights import map_tensors

BUNDLED = Path(__file__).parent / "bundled"
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# Short names, with the hub ids they have been published under. Any of them may be in a cache.
_HUB_NAMES: dict[str, tuple[str, ...]] = {
    "gpt2": ("openai-community/gpt2", "gpt2"),
    "gpt2-small": ("openai-community/gpt2", "gpt2"),
    "gpt2-medium": ("openai-community/gpt2-medium", "gpt2-medium"),
    "gpt2-large": ("openai-community/gpt2-large", "gpt2-large"),
    "gpt2-xl": ("openai-community/gpt2-xl", "gpt2-xl"),
    "distilgpt2": ("distilbert/distilgpt2", "distilgpt2"),
}
_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
_FILES += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


def load(
    name: str | os.PathLike[str] = "tiny",
    *,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
) -> Model:
    """Load a decoder.

    Args:
        name: "tiny" (the bundled model), a directory in Hugging Face layout, or a hub id such as
            "gpt2"; "id@revision" names a revision.
        device: "auto" (cuda where there is one, else cpu), "cpu", "cuda", "cuda:1", "mps".
            mps is never chosen by itself: it has given wrong logits.
        dtype: "float32", "float64" or "bfloat16".
        revision: branch, tag or commit on the hub.

    Raises: ModelError when there is no such model, it is damaged, or it is of an unsupported kind.
    """
    name = os.fspath(name)
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r}", allowed=", ".join(DTYPES))
    place = _device(device)
    folder, source = _find(name, revision)
    return read_directory(folder, name=name, source=source, device=place, dtype=DTYPES[dtype])


def read_directory(
    folder: Path, *, name: str, source: str, device: torch.device, dtype: torch.dtype
) -> Model:
    """Read a checkpoint directory in Hugging Face layout.

    Raises: ModelError saying what is missing, damaged or does not fit together.
    """
    family, config = read_config(_read_json(folder / "config.json"))
    tensors = dict(_read_tensors(folder))
    weights = family.weights(config, tensors)
    for key, tensor in weights.named():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{key} in {folder} holds NaN or infinite numbers",
                hint="The file is damaged or the training diverged; fetch it again",
            )
    weights = map_tensors(weights, lambda t: t.to(device, dtype))
    if config.tied_unembedding:
        from dataclasses import replace

        weights = replace(weights, W_U=weights.W_E.T)
    tokenizer = Tokenizer.from_directory(
        folder, prepend_bos=config.prepend_bos, n_ctx=config.n_ctx
    )
    if tokenizer.d_vocab > config.d_vocab:
        raise ModelError(
            f"the tokenizer in {folder} has {tokenizer.d_vocab} tokens, the embedding "
            f"{config.d_vocab} rows",
            hint="They are not of the same model",
        )
    return Model(config, weights, tokenizer, name=name, source=source)


def available() -> list[tuple[str, str, str]]:
    """(name, family, where) of the models `load` knows by name: bundled, cached, or on the hub."""
    rows = [(p.parent.name, "GPT-2", "bundled") for p in sorted(BUNDLED.glob("*/config.json"))]
    for family in FAMILIES.values():
        for name in family.examples:
            rows.append((name, family.name, "cached" if _cached(name, None) else "hub"))
    return rows


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r}", allowed="auto, cpu, cuda, mps") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda, but torch sees no GPU", hint="Use --device cpu")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps, but torch sees none", hint="Use --device cpu")
    return place


def _find(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder that holds a model, and a name for where it came from."""
    if (BUNDLED / name / "config.json").is_file() and "/" not in name:
        return BUNDLED / name, f"bundled with casestudy: {name}"
    if Path(name).is_dir():
        return Path(name), str(Path(name).resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no directory {name}", hint="Give a directory with config.json in it")
    if revision is None and "@" in name:
        name, revision = name.split("@", 1)
    return _from_hub(name, revision)


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repo in _HUB_NAMES.get(name, (name,)):
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
        if isinstance(config, str):
            folder = Path(config).parent
            if any(folder.glob("*.safetensors")):
                return folder
    return None


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    at = f"{name}@{revision}" if revision else name
    folder = _cached(name, revision)
    if folder is not None:
        return folder, f"hub cache: {at} ({folder.name})"
    repo = _HUB_NAMES.get(name, (name,))[0]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES))
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a bundled model, nor a directory, nor a hub id",
            allowed="tiny, a path, or an id like gpt2 or EleutherAI/pythia-70m",
        ) from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"the hub refused {at}: {error}",
            hint="Check the name; a gated model needs `hf auth login` after accepting its terms",
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{at} is not in the local cache and the hub cannot be reached",
            hint=f"On a machine with a network run `hf download {repo}`, then copy the folder "
            "here and give its path as the model, or use the bundled model: tiny",
        ) from error
    return folder, f"hub: {at} ({folder.name})"


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}", hint="Is it a model's directory?")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return entries


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, memory-mapped where its format allows."""
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} cannot be read: {error}", hint="It is truncated or damaged; fetch it again"
            ) from error


def _weight_files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ModelError(f"{index} has no weight_map")
        names = sorted({str(shard) for shard in shards.values()})
        for shard in names:
            if Path(shard).name != shard:
                raise ModelError(f"{index} points outside its folder: {shard}")
        missing = [shard for shard in names if not (folder / shard).is_file()]
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, which its index names")
        return [folder / shard for shard in names]
    if whole.is_file():
        return [whole]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelError(
            f"{folder} has only pickled weights",
            allowed="model.safetensors",
            hint="Convert them where you trust them: with transformers, "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    raise ModelError(f"{folder} has no model.safetensors")
