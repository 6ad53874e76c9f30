"""The command line: parse, call one function, print.

Results go to stdout, talk and progress to stderr. Nothing heavy is imported before a command needs
it, so that `casestudy --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.errors import CasestudyError

if TYPE_CHECKING:
    from casestudy.model.model import Model
    from casestudy.study.study import Study

app = typer.Typer(
    name="casestudy",
    help="Why does a decoder language model prefer one next token over another?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="tiny, a directory, or a hub id like gpt2 (id@revision)."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, or mps (only when asked for).")]
DtypeOption = Annotated[str, typer.Option(help="float32, float64 or bfloat16.")]
BosOption = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Start prompts with BOS; by default as the model does."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


@app.command()
def run(
    behaviour: Annotated[
        str, typer.Argument(metavar="[PRESET|FILE]", help="A preset's name or a behaviour file.")
    ] = "full-stop-capitals",
    model: ModelOption = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; studies/BEHAVIOUR-MODEL by default.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study and write its report. The same command continues a study that was killed."""
    from casestudy.study.study import study

    loaded = _load(model, device, dtype)
    asked = _behaviour(behaviour)
    folder = out or Path("studies") / f"{asked.name}-{Path(model).name.replace('@', '-')}"
    with _progress("prompts") as progress:
        finished = study(asked, loaded, out=folder, prepend_bos=bos, progress=progress)
    path = finished.report()
    if as_json:
        _print_json(_headline(finished) | {"folder": str(folder), "report": str(path)})
    else:
        _print_headline(finished, path)


@app.command()
def predict(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    model: ModelOption = "tiny",
    answer: Annotated[
        list[str] | None, typer.Option("--answer", "-a", help="Score this answer; repeatable.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many to show.")] = 10,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the most probable next tokens, and how given answers stand."""
    from casestudy.measure.predictions import predictions, score_answer

    loaded = _load(model, device, dtype)
    tokens = loaded.tokenizer.strings(loaded.tokenize(prompt, prepend_bos=bos).rows()[0])
    top = predictions(loaded, prompt, top_k=top_k, prepend_bos=bos).rows()
    scores = [score_answer(loaded, prompt, text, prepend_bos=bos) for text in answer or ()]
    if as_json:
        _print_json(
            {
                "prompt": prompt,
                "tokens": tokens,
                "top": [{k: row[k] for k in ("token", "id", "logit", "prob")} for row in top],
                "answers": [
                    {
                        "answer": s.answer,
                        "tokens": list(s.tokens),
                        "rank": s.rank,
                        "logit": s.logit,
                        "log_prob": s.log_prob,
                        "prob": s.prob,
                    }
                    for s in scores
                ],
            }
        )
        return
    _table(
        " ".join(map(visible, tokens)),
        ("rank", "token", "logit", "probability"),
        [
            (str(r["rank"]), visible(r["token"]), f"{r['logit']:.2f}", f"{r['prob']:.2%}")
            for r in top
        ],
    )
    if scores:
        _table(
            "answers",
            ("answer", "tokens", "rank", "log-probability", "probability"),
            [
                (
                    visible(s.answer),
                    " ".join(map(visible, s.tokens)),
                    "" if s.rank is None else str(s.rank),
                    f"{s.log_prob:.3f}",
                    f"{s.prob:.2%}",
                )
                for s in scores
            ],
        )


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the models known by name: bundled, cached here, or on the hub."""
    from casestudy.model.loading import available

    rows = available()
    if as_json:
        _print_json([{"name": n, "family": f, "where": w} for n, f, w in rows])
        return
    _table("models", ("name", "family", "where"), rows)
    _say("A directory in Hugging Face layout, or any hub id of these families, works too.")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Make report.html of a stored study again; no model is needed."""
    from casestudy.show.report import write_report
    from casestudy.study.store import Store

    path = write_report(Store.open(folder))
    if as_json:
        _print_json({"report": str(path)})
    else:
        print(path)


def visible(text: str) -> str:
    """A token with its spaces and newlines shown, and control characters escaped."""
    shown = text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def main() -> None:
    """Run the command line; errors meant for the user are printed without a traceback."""
    try:
        app()
    except CasestudyError as error:
        _say(f"[bold red]{type(error).__name__}[/]: {_escape(str(error))}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say("Stopped. What was stored is kept; the same command continues.")
        raise SystemExit(130) from None


def _load(model: str, device: str, dtype: str) -> Model:
    from casestudy.model.loading import load

    return load(model, device=device, dtype=dtype)


def _behaviour(name: str) -> Any:
    from casestudy.behaviour.presets import preset

    return preset(name)


def _headline(study: Study) -> dict[str, Any]:
    """The figures a reader wants first."""
    mean = study.grids["logit_difference.mean"]
    check = study.grids["ledger.check"]
    assert mean.n is not None
    main = mean.axes[0].labels[0]
    account = check.select(contrast=main)
    quantity = {name: account.select(quantity=name).values for name in account.axes[0].labels}
    import numpy as np

    return {
        "model": study.manifest["model"]["name"],
        "behaviour": study.manifest["behaviour"]["name"],
        "contrast": main,
        "n": int(mean.n[0]),
        "logit_difference": _number(mean.values[0]),
        "interval": [_number(end[0]) for end in (mean.lower, mean.upper) if end is not None],
        "without_b_U": _number(np.nanmean(quantity["without b_U"])),
        "largest_gap": _number(np.nanmax(quantity["gap"])),
        "bound": _number(np.nanmin(quantity["bound"])),
    }


def _print_headline(study: Study, path: Path) -> None:
    h = _headline(study)
    low, high = h["interval"]
    _table(
        f"{h['behaviour']} on {h['model']}",
        ("figure", "value"),
        [
            ("prompts with an answer", str(h["n"])),
            (f"mean logit difference, answer − {h['contrast']}", f"{h['logit_difference']:.3f}"),
            ("95 % interval", f"{low:.3f} to {high:.3f}"),
            ("the same without b_U", f"{h['without_b_U']:.3f}"),
            ("largest gap of the ledger", f"{h['largest_gap']:.1e} (bound {h['bound']:.0e})"),
        ],
    )
    print(f"report: {path}")


def _number(value: Any) -> float | None:
    number = float(value)
    return None if number != number else number


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text)


class _progress:
    """A progress bar on stderr while a study runs; callable with (done, total)."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=not sys.stderr.isatty(),
        )

    def __enter__(self) -> _progress:
        self._bar.__enter__()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
