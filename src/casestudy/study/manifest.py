"""What does a study record about itself?

The manifest holds the model, the behaviour, the versions and the settings; the plan of chunks and
the number of threads, so that a continued study gives the same numbers; and what was not measured,
with the reason.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import casestudy
from casestudy.behaviour.notices import prompt_notices
from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.steps import Scoring
from casestudy.engine.threads import suited
from casestudy.engine.workers import allowed
from casestudy.errors import StudyError
from casestudy.model.chat import Written
from casestudy.model.model import Model, WeightsFile
from casestudy.results.names import WHOLES
from casestudy.study.measuring import plan_chunks
from casestudy.study.settings import Execution, Settings
from casestudy.study.store import FORMAT, Store

IDENTITY = ("format", "behaviour", "model", "settings", "measurements")
"""The entries that must agree for a continued study's numbers to be the same."""


_COMPARED = {
    "sum": "the sums of all their tokens' log-probabilities",
    "mean": "the means of their tokens' log-probabilities",
    "first": "the first tokens in which answer and counterpart differ",
}


def several_said(scoring: Scoring) -> str:
    """What to know of a study whose answers have several tokens."""
    return (
        f"some answers have several tokens: the contrast “{WHOLES[scoring]}”, the patches and the "
        f"circuit compare {_COMPARED[scoring]}; the other contrasts compare the first tokens of "
        "answer and counterpart"
    )


def new_manifest(
    model: Model,
    behaviour: Behaviour,
    settings: Settings,
    execution: Execution,
    lengths: Sequence[int | None],
    measurements: Sequence[str],
    not_measured: Mapping[str, str],
    *,
    several: bool = False,
) -> dict[str, Any]:
    """The manifest of a new study.

    Args:
        model, behaviour, settings, execution: as `study` takes them.
        lengths: tokens per prompt; None for a prompt that cannot be run.
        measurements: the names of the chosen measurements and stages.
        not_measured: what a reader may expect but is not measured, with the reason.
        several: whether any prompt has answers of several tokens.
    """
    notices = prompt_notices(model.tokenizer, behaviour.prompts)
    if several:
        notices = (*notices, several_said(settings.scoring))
    # stored only if given, so that studies stored before these settings existed still match
    asked: dict[str, Any] = {"parse_special": True} if model.tokenizer.parse_special else {}
    asked |= {} if settings.family is None else {"family": settings.family}
    asked |= {"strict_tokens": True} if model.tokenizer.strict else {}
    asked |= {"scoring": settings.scoring} if several else {}
    return {
        "format": FORMAT,
        "versions": _versions(),
        "model": _describe_model(model),
        "behaviour": _describe_behaviour(behaviour),
        "settings": {
            "prepend_bos": model.tokenizer.prepend_bos,
            "top_k": settings.top_k,
            **asked,
        },
        "measurements": list(measurements),
        "plan": _new_plan(model, execution, lengths),
        "not_measured": [{"what": what, "why": why} for what, why in not_measured.items()],
        "notes": [*behaviour.notes, *notices],
        "created": now(),
        "state": "running",
        "seconds": 0.0,
    }


def _new_plan(model: Model, execution: Execution, lengths: Sequence[int | None]) -> dict[str, Any]:
    """The plan of a new study. What is run at once is divided among the chunks that this process
    computes at the same time."""
    cores = execution.threads or allowed()
    here = execution.executor == "local" and model.device.type == "cpu"
    together = cores if here else 1
    return {
        "chunks": plan_chunks(lengths, chunk_tokens=max(1, execution.chunk_tokens // together)),
        "threads": execution.threads or _threads(model, execution),
        "cores": cores,
    }


def stored_plan(store: Store, lengths: Sequence[int | None]) -> tuple[list[list[int]], int, int]:
    """The stored plan of chunks, and the stored numbers of threads and of cores; a study that was
    begun before cores were stored has one.

    Raises: StudyError if the plan does not hold each prompt that can be run exactly once.
    """
    plan: Any = store.manifest.get("plan")
    runnable = [i for i, n in enumerate(lengths) if n is not None]
    try:
        chunks = [[int(i) for i in chunk] for chunk in plan["chunks"]]
        threads, cores = int(plan["threads"]), int(plan.get("cores", 1))
        whole = sorted(i for chunk in chunks for i in chunk) == runnable and all(chunks)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or min(threads, cores) < 1:
        raise StudyError(
            f"the plan in {store.folder / 'manifest.json'} does not hold each prompt once",
            hint="Was it changed by hand? Put it back, or give another --out",
        )
    return chunks, threads, cores


def now() -> str:
    """The present time, in the manifest's format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _threads(model: Model, execution: Execution) -> int:
    """As many threads as speed up this model; on Ray at most each worker's share of them."""
    workers = 1 if execution.executor == "local" else execution.workers
    return min(suited(model), max(1, torch.get_num_threads() // workers))


def _describe_model(model: Model) -> dict[str, Any]:
    config = model.config
    return {
        # a report is shared: of an absolute path it says the last name
        "name": Path(model.name).name if Path(model.name).is_absolute() else model.name,
        "source": model.source,
        "weight_hash": model.weight_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "family": config.family,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "d_model": config.d_model,
        "d_vocab": config.d_vocab,
        "n_ctx": config.n_ctx,
        "rewrites": list(model.rewrites),
        **({"file": _describe_file(model.file)} if model.file else {}),
    }


def _describe_file(file: WeightsFile) -> dict[str, Any]:
    return {"name": file.name, "sha256": file.sha256, "stored_as": dict(file.types)}


_LATER = ("readout", "ids")
"""Fields of a prompt that 0.1.0 did not have."""


def prompts_hash(behaviour: Behaviour) -> str:
    """SHA-256 of a behaviour's prompts, with all that is said of each."""
    # What came after 0.1.0 counts only where it is used: a study of then is still the same study.
    prompts = json.dumps(
        [
            {k: v for k, v in asdict(p).items() if v is not None or k not in _LATER}
            for p in behaviour.prompts
        ],
        ensure_ascii=True,
    )
    return hashlib.sha256(prompts.encode()).hexdigest()


def _describe_behaviour(behaviour: Behaviour) -> dict[str, Any]:
    return {
        "name": behaviour.name,
        "question": behaviour.question,
        "about": behaviour.about,
        "answers": behaviour.answers,
        "n_prompts": len(behaviour),
        "classes": asdict(behaviour.classes),
        "class_contrast": behaviour.class_contrast and asdict(behaviour.class_contrast),
        "roles": [asdict(role) for role in behaviour.roles],
        "main": list(behaviour.main),
        "n_main": len(behaviour.main_prompts),
        "groups": {
            name: sum(name in prompt.groups for prompt in behaviour.prompts)
            for name in behaviour.groups
        },
        "hash": prompts_hash(behaviour),
        **({"chat": behaviour.chat.as_dict()} if isinstance(behaviour.chat, Written) else {}),
        **_describe_circuit_prompts(behaviour),
    }


def _describe_circuit_prompts(behaviour: Behaviour) -> dict[str, Any]:
    """Nothing where there are none: studies stored before there could be go on as they are."""
    texts = json.dumps([asdict(p) for p in behaviour.circuit_prompts], ensure_ascii=True)
    if not behaviour.circuit_prompts:
        return {}
    return {
        "n_circuit_prompts": len(behaviour.circuit_prompts),
        "circuit_prompts_hash": hashlib.sha256(texts.encode()).hexdigest(),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "tokenizers", "safetensors")
    return {
        "casestudy": casestudy.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
