"""When does a behaviour emerge in training?

Runs one study of the behaviour per checkpoint of a model, each in its own folder. Then compares the
checkpoints: the contrasts with their intervals, the answer's rank, how often the answer is the
first prediction, and the probability of each class of tokens. A contrast has emerged at the first
checkpoint from which on every interval excludes zero and has the sign of the last checkpoint's.

Whose answers? An answer that a checkpoint chooses itself has a large logit because it was chosen
for it, and so has a positive contrast even before training. Therefore all checkpoints are measured
on the answers of the last one by default. With `answers="own"` each checkpoint chooses its answers;
this shows how it completes the prompts, not when it learned to. A class contrast needs no answers.
It is not zero before training either if one class has more tokens than the other, so look for where
it changes.

Cost: one study per checkpoint, by default of the predictions and class masses only, and one of the
last checkpoint's predictions for its answers. The same call continues a stopped run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from casestudy.behaviour.chat import written
from casestudy.behaviour.prompts import Behaviour, Prompts
from casestudy.behaviour.readouts import text_of
from casestudy.claims.compare import same_weights
from casestudy.claims.context import behaviour_of
from casestudy.claims.same_prompts import headline
from casestudy.claims.stored_values import ANSWERS, is_yes_or_no, stored_answers
from casestudy.engine.packing import Progress
from casestudy.errors import ModelError, StudyError, one_of
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.model.tokens import Tokenizer
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid, Shown, worst_error
from casestudy.results.stats import mean_over_prompts, share_ends, units_of
from casestudy.study.settings import Execution
from casestudy.study.study import Study, study

ONLY = ("predictions", "class_mass")
Answers = Literal["last", "own"]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a model.

    Attributes:
        label: its revision, or the name of its folder.
        model: its name, as `load` takes it.
    """

    label: str
    model: str


@dataclass(frozen=True)
class Emergence(Shown):
    """A behaviour over checkpoints.

    Attributes:
        checkpoints: in the order they were given.
        studies: one per checkpoint.
        contrasts: (contrast, checkpoint), logits; means over the headline prompts with n and
            interval.
        answers: "rank", "top-1" and "probability" of the answer, (checkpoint) each.
        class_mass: (class, checkpoint), probability; None if it was not measured.
        since: per contrast, the first checkpoint from which on every interval excludes zero and has
            the sign of the last checkpoint's; None if the last interval includes zero.
    """

    checkpoints: tuple[Checkpoint, ...]
    studies: tuple[Study, ...]
    contrasts: Grid
    answers: Mapping[str, Grid]
    class_mass: Grid | None
    since: Mapping[str, str | None]

    @property
    def shown(self) -> Grid:
        """The contrasts over the checkpoints."""
        return self.contrasts

    @property
    def same_weights(self) -> tuple[str, ...]:
        """A sentence for each two checkpoints whose weights are the same bit for bit."""
        stores = [study.store for study in self.studies]
        label = {id(s): one.label for s, one in zip(stores, self.checkpoints, strict=True)}
        return tuple(
            f"{label[id(one)]} and {label[id(other)]} are one model: their weights are the same "
            "bit for bit."
            for one, other in same_weights(stores)
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything by checkpoint, for JSON."""
        return {
            "since": dict(self.since),
            "checkpoints": [self._at(i) for i in self._places],
            "same_weights": list(self.same_weights),
        }

    @property
    def _places(self) -> range:
        return range(len(self.checkpoints))

    def _at(self, place: int) -> dict[str, Any]:
        one = self.checkpoints[place]
        found: dict[str, Any] = {"checkpoint": one.label, "model": one.model}
        found["contrasts"] = _entries(self.contrasts, place)
        found["answer"] = {what: _entry(grid, (place,)) for what, grid in self.answers.items()}
        if self.class_mass is not None:
            found["class_mass"] = _entries(self.class_mass, place)
        return found


def checkpoints(models: Sequence[str], revisions: Sequence[str] = ()) -> tuple[Checkpoint, ...]:
    """The checkpoints to measure.

    Args:
        models: several models; or one model with `revisions`; or a folder whose sub-folders are
            checkpoints, in the order of the numbers in their names.
        revisions: of one model: its sub-folders if it is a folder, otherwise its revisions on the
            hub or in the cache.

    Raises: ModelError for fewer than two checkpoints, for two of the same name, and for a revision
        that the folder does not have.
    """
    if revisions and len(models) != 1:
        raise ModelError(f"{len(models)} models with revisions", allowed="revisions of one model")
    folder = Path(models[0] if models else "").expanduser()
    inside = sorted((path.parent.name for path in folder.glob("*/config.json")), key=_by_number)
    is_parent = folder.is_dir() and not (folder / "config.json").is_file()
    if revisions and is_parent:
        strangers = [revision for revision in revisions if revision not in inside]
        if strangers:
            raise ModelError(
                f"{folder} has no checkpoint {strangers[0]}", allowed=", ".join(inside) or None
            )
        found = [Checkpoint(revision, str(folder / revision)) for revision in revisions]
    elif revisions:
        found = [Checkpoint(revision, f"{models[0]}@{revision}") for revision in revisions]
    elif len(models) == 1 and is_parent:
        found = [Checkpoint(name, str(folder / name)) for name in inside]
    else:
        names = [Path(model).name for model in models]
        found = [
            Checkpoint(name if names.count(name) == 1 else model, model)
            for name, model in zip(names, models, strict=True)
        ]
    if len({one.label for one in found}) < max(2, len(found)):
        raise ModelError(
            f"the checkpoints {', '.join(one.model for one in found) or 'none'}",
            allowed="two or more, each once",
            hint="Give --revisions, --model several times, or a folder of checkpoints",
        )
    return tuple(found)


def _by_number(name: str) -> list[tuple[int, str]]:
    """A sorting key that reads digits as numbers, so that step512 comes before step1000."""
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in _split(name)]


def _split(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def emergence(
    models: str | Sequence[str] | Sequence[Checkpoint],
    behaviour: Prompts = "full-stop-capitals",
    *,
    out: str | os.PathLike[str],
    revisions: Sequence[str] = (),
    answers: Answers = "last",
    only: Sequence[str] | None = ONLY,
    device: str = "auto",
    dtype: str | None = None,
    prepend_bos: bool | None = None,
    threads: int | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> Emergence:
    """Run (or continue) a study of a behaviour on each checkpoint, and compare the results.

    Args:
        models, revisions: as `checkpoints` takes them; or the checkpoints that it returned.
        behaviour: a `Behaviour`, texts, a preset's name or the path of a behaviour file.
        out: a folder; each checkpoint's study is in a sub-folder named after its label.
        answers: "last" measures all checkpoints on the answers of the last one, "own" each on its
            own answers (see the module).
        only: names of measurements, including predictions; None for all.
        device, dtype, prepend_bos: as `load` takes them.
        threads: as `Execution` takes them.
        progress: called with a checkpoint's label and the progress of its study.

    Raises: ModelError and StudyError as `load` and `study` do; StudyError if the last checkpoint
        has no answer to any headline prompt.
    """
    asked = _checkpoints(models, revisions)
    if only is not None and "predictions" not in only:
        raise StudyError(f"only {', '.join(only)}", allowed="predictions, and others beside them")
    behaviour = behaviour_of(behaviour)
    folder = Path(out)

    def read(one: Checkpoint) -> Model:
        return load(one.model, device=device, dtype=dtype, prepend_bos=prepend_bos)

    def run(
        one: Checkpoint, of: Behaviour, name: str, only: Sequence[str] | None, model: Model
    ) -> Study:
        tell = None if progress is None else partial(progress, one.label)
        return study(
            model,
            of,
            out=folder / re.sub(r"[^\w.+=-]+", "-", name).strip("-"),
            only=only,
            execution=Execution(threads=threads),
            progress=tell,
        )

    if answers == "last" and behaviour.answers != "given":
        last = read(asked[-1])
        name = f"answers of {asked[-1].label}"
        chosen = run(asked[-1], behaviour, name, ("predictions",), last)
        behaviour = written(last, behaviour)
        behaviour = with_answers(behaviour, chosen, behaviour.read_by(last).tokenizer)
        del last  # one checkpoint in memory at a time
    studies = [run(one, behaviour, one.label, only, read(one)) for one in asked]
    return side_by_side(asked, studies)


def read_answers(text: str) -> Answers:
    """The value of --answers.

    Raises: StudyError for any other value, with the allowed ones.
    """
    return one_of("answers", text, get_args(Answers), StudyError)


def _checkpoints(
    models: str | Sequence[str] | Sequence[Checkpoint], revisions: Sequence[str]
) -> tuple[Checkpoint, ...]:
    if isinstance(models, str):
        return checkpoints([models], revisions)
    ready = [model for model in models if isinstance(model, Checkpoint)]
    return tuple(ready) or checkpoints([str(model) for model in models], revisions)


def with_answers(behaviour: Behaviour, study: Study, tokenizer: Tokenizer) -> Behaviour:
    """The behaviour with the answers that a study's model chose, to measure other models on.

    A token is written as its text, or as its id if its text is read as other tokens (see
    `Tokenizer.written`). Prompts without an answer are left out and counted in the notes.

    Raises: StudyError if no headline prompt has an answer.
    """
    frame = study.store.columns(names.ANSWERS, ["prompt", "form", "id"])
    forms: dict[int, dict[str, str]] = {}
    for i, form, id in frame.iter_rows():
        written = tokenizer.written(id, after=text_of(tokenizer, behaviour.prompts[i]))
        forms.setdefault(i, {})[form] = written
    kept = [
        replace(
            prompt,
            answer=forms[i]["answer"],
            counterpart=forms[i].get("counterpart", prompt.counterpart),
        )
        for i, prompt in enumerate(behaviour.prompts)
        if i in forms
    ]
    if not any(map(behaviour.is_main, kept)):
        raise StudyError(
            f"{study.manifest['model']['name']} has no answer to any headline prompt",
            hint="Ask each checkpoint for its own: answers='own'",
        )
    there = {name for prompt in kept for name in prompt.groups}
    left = len(behaviour) - len(kept)
    note = f"{left} prompts to which the last checkpoint has no answer were left out"
    return replace(
        behaviour,
        prompts=tuple(kept),
        main=tuple(name for name in behaviour.main if name in there),
        notes=(*behaviour.notes, *([note] if left else [])),
    )


def side_by_side(checkpoints: Sequence[Checkpoint], studies: Sequence[Study]) -> Emergence:
    """Compare finished studies of one behaviour on several checkpoints."""
    axis = Axis("checkpoint", tuple(one.label for one in checkpoints))
    contrasts = _stacked(
        [study.grids[names.mean(names.LOGIT_DIFFERENCE)] for study in studies], axis
    )
    answers = {
        what: _stacked([_mean_answer(study, what) for study in studies], axis) for what in ANSWERS
    }
    masses = [study.grids.get(names.mean(names.CLASS_MASS)) for study in studies]
    known = [mass for mass in masses if mass is not None]
    return Emergence(
        tuple(checkpoints),
        tuple(studies),
        contrasts,
        answers,
        _stacked(known, axis) if len(known) == len(studies) else None,
        {name: since(contrasts.select(contrast=name)) for name in contrasts.axes[0].labels},
    )


def _mean_answer(study: Study, what: str) -> Grid:
    """The mean over the headline prompts that have an answer."""
    keys, documents, _ = headline(study.store)
    grid = stored_answers(study.store, what)
    labels = [label for label in grid.axis("prompt").labels if int(label) in keys]
    names = [documents[int(label)] for label in labels]
    mean = mean_over_prompts(grid.take("prompt", labels), documents=names)
    if not is_yes_or_no(what):
        return mean
    assert mean.lower is not None
    assert mean.upper is not None
    units = len(set(units_of(len(names), names).tolist()))
    low, high = share_ends(float(mean.values), float(mean.lower), float(mean.upper), units)
    return replace(mean, lower=np.array(low), upper=np.array(high))


def _stacked(grids: Sequence[Grid], axis: Axis) -> Grid:
    """The checkpoints' grids as one grid, with checkpoints as the last axis."""
    first = grids[0]

    def stack(part: str) -> Array:
        return np.stack([getattr(grid, part) for grid in grids], -1)

    return replace(
        first,
        name=first.name.removesuffix(names.MEAN),
        values=stack("values"),
        lower=stack("lower"),
        upper=stack("upper"),
        n=stack("n"),
        axes=(*first.axes, axis),
        error=worst_error([grid.error for grid in grids]),
    )


def _entries(grid: Grid, checkpoint: int) -> dict[str, Any]:
    labels = grid.axes[0].labels
    return {label: _entry(grid, (i, checkpoint)) for i, label in enumerate(labels)}


def _entry(grid: Grid, place: tuple[int, ...]) -> dict[str, Any] | None:
    """A mean with its interval and n; None if nothing was measured."""
    assert grid.lower is not None
    assert grid.upper is not None
    assert grid.n is not None
    if not grid.n[place]:
        return None
    ends = (grid.lower[place], grid.upper[place])
    interval = None if np.isnan(ends).any() else [float(end) for end in ends]
    return {"mean": float(grid.values[place]), "interval": interval, "n": int(grid.n[place])}


def since(contrast: Grid) -> str | None:
    """The first checkpoint from which on every interval excludes zero with the last one's sign."""
    assert contrast.lower is not None
    assert contrast.upper is not None
    side = np.where(contrast.lower > 0, 1, np.where(contrast.upper < 0, -1, 0))
    since = None
    for label, here in zip(reversed(contrast.axes[-1].labels), reversed(side), strict=True):
        if here == 0 or here != side[-1]:
            break
        since = label
    return since
