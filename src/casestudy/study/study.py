"""How are measurements run together and resumed?

A `Study` is a behaviour, a model and measurements, run in stages (see `stage`): every measurement
over chunks of prompts, then patching, then the circuit. Each step of a stage is stored completely
before the next begins. After a kill at any moment, the same call continues the study; the plan of
chunks and the number of threads are stored, so the numbers are the same.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from casestudy.behaviour.chat import written
from casestudy.behaviour.contrast import check_classes
from casestudy.behaviour.counterfactual import FAMILY_NAMES
from casestudy.behaviour.files import find_behaviour, names_behaviour
from casestudy.behaviour.presets import preset_names
from casestudy.behaviour.prompts import Behaviour
from casestudy.behaviour.readouts import check_roles, row_of
from casestudy.behaviour.steps import Scoring, any_several
from casestudy.drawing import WIDTH, described, draw
from casestudy.engine.batch import Measurement
from casestudy.engine.packing import Planned, Progress, Tell
from casestudy.engine.threads import threads_set
from casestudy.engine.workers import cores_set
from casestudy.errors import BehaviourError, CasestudyError, StudyError, one_of, unknown
from casestudy.measure.attention import ATTENTION
from casestudy.measure.attribution import ATTRIBUTION
from casestudy.measure.case_by_space import CASE_BY_SPACE
from casestudy.measure.class_mass import CLASS_MASS
from casestudy.measure.controls import CONTROL
from casestudy.measure.head_scores import PROFILE
from casestudy.measure.ledger import LEDGER
from casestudy.measure.lens import LENS
from casestudy.measure.predictions import PREDICTIONS
from casestudy.model.loading import load
from casestudy.model.model import Model
from casestudy.results import names
from casestudy.results.result import Grid, Result, Table
from casestudy.study import causal, circuit, measuring, neurons
from casestudy.study.chosen import OF_CHUNKS, choose
from casestudy.study.clock import LEFT_OUT, Clock
from casestudy.study.manifest import IDENTITY, new_manifest, now, stored_plan
from casestudy.study.settings import Execution, Settings
from casestudy.study.stage import Stage, Subject
from casestudy.study.store import Store

_MEASURED = (
    *(PREDICTIONS, CLASS_MASS, LEDGER, CASE_BY_SPACE, CONTROL),
    *(LENS, ATTRIBUTION, ATTENTION, PROFILE),
)
MEASUREMENTS: dict[str, Measurement] = {
    name: measurement for name in OF_CHUNKS for measurement in _MEASURED if measurement.name == name
}
"""The measurements of every chunk, by name, in the order of the argument."""

STAGES: dict[str, Callable[[Subject], Stage[Any, Any]]] = {
    measuring.NAME: measuring.measuring,
    causal.NAME: causal.patching,
    circuit.NAME: circuit.circuit,
    neurons.NAME: neurons.neurons,
}
"""The stages of a study, in order. The first always runs, with the chosen measurements; the last is
asked for by `Settings.neurons`."""

STUDY = "study"
"""`Progress.stage` after each stage: `done` of the study's stages are stored; `note` names one."""

_NOT_MEASURED = {
    causal.NAME: (
        "causal effects",
        "no activation was patched: the ledger says who wrote, not who was needed",
    ),
    circuit.NAME: ("circuits", "no subgraph was tested for faithfulness"),
}
"""What a reader may look for, by the stage that measures it."""
_WHAT = {stage: what for stage, (what, _) in _NOT_MEASURED.items()} | {neurons.NAME: neurons.WHAT}

_FLAGSHIP = "full-stop-capitals"
_TINY = "tiny"


@dataclass(frozen=True)
class Study:
    """A study in its folder: what was run, and its results.

    Attributes:
        store: its folder.
        grids: joined results, their means and means by group, by name; read when accessed.
        tables: joined tables, by name; read when accessed.
    """

    store: Store
    grids: Mapping[str, Grid]
    tables: Mapping[str, Table]

    @property
    def manifest(self) -> dict[str, Any]:
        """The model, the behaviour, the versions and the settings."""
        return self.store.manifest

    def __repr__(self) -> str:
        about, model = self.manifest["behaviour"], self.manifest["model"]
        held = sorted(n for n in {*self.grids, *self.tables} if not n.endswith(names.RAW))
        return described(
            f"Study {about['name']} on {model['name']}",
            {
                "question": about["question"],
                "folder": self.store.folder,
                "state": self.manifest["state"],
                "prompts": f"{about['n_prompts']:,}, {about['n_main']:,} for the headline",
                "measured": ", ".join(self.manifest["measurements"]),
                "headline": self._headline(),
                "report": ".report()",
            },
            [f"  {len(held)} results, by name:", *_wrapped(held)],
        )

    def _headline(self) -> str:
        """The mean of each contrast over the main prompts."""
        mean = self.grids.get(names.mean(names.LOGIT_DIFFERENCE))
        if mean is None or mean.lower is None or mean.upper is None or mean.n is None:
            return ""
        return "; ".join(
            f"answer − {label} {mean.values[i]:+.3f} logits ({mean.lower[i]:.3f} to "
            f"{mean.upper[i]:.3f}, n = {mean.n[i]:g})"
            for i, label in enumerate(mean.axes[0].labels[:2])
        )

    def __getitem__(self, name: str) -> Result:
        """A grid or table by name.

        Raises: StudyError listing what there is.
        """
        if name in self.grids:
            return self.grids[name]
        if name in self.tables:
            return self.tables[name]
        known = sorted({*self.grids, *self.tables})
        raise unknown(StudyError, f"the study has no {name!r}", name, known)

    def plot(self, **options: Any) -> Any:
        """A plotly figure of the mean ledger; for another result, `study[name].plot()`."""
        return self.grids[names.mean(names.LEDGER)].plot(**options)

    def _repr_html_(self) -> str:
        about = self.manifest["behaviour"]
        html = draw(
            "study.html",
            f"{about['name']} on {self.manifest['model']['name']}",
            about["n_prompts"],
            self.grids.get(names.mean(names.LEDGER)),
            sorted({*self.grids, *self.tables}),
            str(self.store.folder),
        )
        return str(html)

    def report(self) -> Path:
        """Write report.html into the study's folder, and say where it is."""
        path: Path = draw("study.report", self.store)
        return path


def _wrapped(held: Sequence[str]) -> list[str]:
    return textwrap.wrap(", ".join(held), WIDTH - 4, initial_indent="    ",
                         subsequent_indent="    ", break_on_hyphens=False)  # fmt: skip


def study(
    model: Model | Behaviour | str | Sequence[str] = _TINY,
    behaviour: Behaviour | Model | str | Sequence[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    settings: Settings | None = None,
    execution: Execution | None = None,
    progress: Tell | None = None,
) -> Study:
    """Run a behaviour's measurements on a model, or continue where a run of the same was killed.

    Args:
        model: a `Model`, or what `load` takes; "tiny" by default.
        behaviour: a `Behaviour`, texts, a preset's name or the path of a behaviour file; the full
            stop's capitals by default. The two are also taken in the other order.
        out: the study's folder; a temporary one by default.
        only: names of measurements, or of the stages "patching" and "circuit"; all by default.
        skip: names that are left out of those.
        settings: what is asked beside the behaviour; see `Settings`.
        execution: where and with how much memory it is run; see `Execution`.
        progress: told how far each stage is (`State` while prompts are measured), and after each
            stage with `STUDY` as the stage's name: what is kept so far can then be reported.

    Raises: StudyError where the folder holds another study or cannot be written, and where it holds
        a circuit that was looked for in another way; BehaviourError, PromptError, TokenError,
        ModelError for inputs that are not well formed; MeasureError where a circuit that was asked
        for cannot be looked for.
    """
    model, behaviour = _read(model, behaviour)
    behaviour = written(model, behaviour)
    model = behaviour.read_by(model)
    settings, execution = settings or Settings(), execution or Execution()
    if settings.family is not None:
        one_of("family", settings.family, FAMILY_NAMES, StudyError)
    one_of("scoring", settings.scoring, get_args(Scoring), StudyError)
    names = choose(only, skip)
    check_classes(model, behaviour)
    check_roles(model.tokenizer, behaviour)
    lengths, errors = _lengths(model, behaviour)
    not_measured = dict(entry for name, entry in _NOT_MEASURED.items() if name not in names)
    several = any_several(model.tokenizer, behaviour.prompts)
    asked = (model, behaviour, settings, execution, lengths, names, not_measured)
    manifest = new_manifest(*asked, several=several)
    folder = Path(tempfile.mkdtemp(prefix="casestudy-")) if out is None else Path(out)
    store = Store.create_or_resume(folder, manifest, IDENTITY)
    with store.locked():
        chunks, threads, cores = stored_plan(store, lengths)
        subject = Subject(
            store=store,
            model=model,
            behaviour=behaviour,
            settings=settings,
            execution=replace(execution, threads=threads),
            measurements=tuple(m for name, m in MEASUREMENTS.items() if name in names),
            chunks=chunks,
            lengths=lengths,
            errors=errors,
            scoring=settings.scoring if several else None,
            progress=progress,
            clock=Clock(execution.budget.seconds),
        )
        with threads_set(threads), cores_set(cores):
            more = [neurons.NAME] if settings.neurons is not None else []
            _finish(subject, [measuring.NAME, *(n for n in STAGES if n in names or n in more)])
        seconds = float(store.scan("chunks").select("seconds").sum().collect().item())
        done = not subject.clock.left_out
        store.manifest |= {"state": "complete" if done else "running", "finished": now()}
        store.manifest["seconds"] = seconds
        store.save_manifest()
        if done:
            store.drop_steps(causal.SCORES)
    return open_study(folder)


def _finish(subject: Subject, stages: Sequence[str]) -> None:
    """Run the stages in order and report progress after each. The first always finishes; the others
    are left out if there is no time."""
    clock, store = subject.clock, subject.store
    store.manifest["not_measured"] = [
        entry for entry in store.manifest["not_measured"] if not entry["why"].startswith(LEFT_OUT)
    ]
    for i, name in enumerate(stages):
        what = _WHAT.get(name, name)
        if i and clock.left <= 0:
            clock.skip(what)
        else:
            STAGES[name](subject).finish()
        subject.tell(Progress(STUDY, i + 1, len(stages), name))
    for what in clock.left_out:
        store.say_not_measured(what, clock.why(what))
    if clock.left_out:
        words = f"left out: {', '.join(clock.left_out)}; the same command continues with them"
        subject.tell(Planned(STUDY, len(stages), len(stages), words=words))


def open_study(folder: str | os.PathLike[str]) -> Study:
    """Read a stored study.

    Raises: StudyError when there is none, or a file of it is damaged.
    """
    store = Store.open(folder)
    return Study(store, store.grids(), store.tables())


def _read(
    model: Model | Behaviour | str | Sequence[str],
    behaviour: Behaviour | Model | str | Sequence[str] | None,
) -> tuple[Model, Behaviour]:
    """The model and the behaviour, whichever came first.

    Raises: BehaviourError where neither is a behaviour, or both are; as `load`, `find_behaviour`.
    """
    if not isinstance(model, Model | Behaviour | str):
        model = Behaviour.of(model)
    if not isinstance(behaviour, Model | Behaviour | str | None):
        behaviour = Behaviour.of(behaviour)
    if behaviour is None:
        behaviour = _TINY if _is_behaviour(model) else _FLAGSHIP
    if isinstance(behaviour, Model) or (_is_behaviour(model) and not _is_behaviour(behaviour)):
        model, behaviour = behaviour, model
    if isinstance(model, Behaviour):
        raise BehaviourError("two behaviours", allowed="a model and a behaviour")
    if isinstance(behaviour, Model):
        raise BehaviourError("two models", allowed="a model and a behaviour")
    if isinstance(model, str) and not _is_behaviour(behaviour):
        raise BehaviourError(
            f"neither {model!r} nor {behaviour!r} is a behaviour",
            allowed=", ".join(preset_names()) + ", or the path of a behaviour file",
        )
    return (
        load(model) if isinstance(model, str) else model,
        find_behaviour(behaviour) if isinstance(behaviour, str) else behaviour,
    )


def _is_behaviour(value: object) -> bool:
    return isinstance(value, Behaviour) or (isinstance(value, str) and names_behaviour(value))


def _lengths(model: Model, behaviour: Behaviour) -> tuple[list[int | None], dict[int, str]]:
    """How many tokens each prompt has, and why those without a number cannot be run."""
    lengths: list[int | None] = []
    errors: dict[int, str] = {}
    for i, prompt in enumerate(behaviour.prompts):
        try:
            lengths.append(len(row_of(model.tokenizer, prompt, number=i)))
        except CasestudyError as problem:
            lengths.append(None)
            errors[i] = str(problem)
    if len(errors) == len(behaviour):
        raise StudyError(f"no prompt can be run; the first: {errors[0]}")
    return lengths, errors
