"""The command line: parse, call one function, print.

Results go to stdout, talk and progress to stderr. Nothing heavy is imported before a command needs
it, so that `casestudy --help` answers at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from casestudy.errors import CasestudyError

if TYPE_CHECKING:
    from casestudy.claims.check import Checked, Outcome
    from casestudy.claims.compare import Comparison
    from casestudy.claims.emergence import Emergence
    from casestudy.model.model import Model
    from casestudy.study.study import State, Study

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
DtypeOption = Annotated[str, typer.Option(help="float32, float64, bfloat16, float16 or auto.")]
BosOption = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Start prompts with BOS; by default as the model does."),
]
MemoryOption = Annotated[str, typer.Option(help="What patching may use, as in 500MB or 2GB.")]
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
    memory: MemoryOption = "2GB",
    executor: Annotated[str, typer.Option(help="local, or ray for several machines.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="How many Ray workers.")] = 2,
    address: Annotated[str | None, typer.Option(help="A Ray cluster; by default its own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study and write its report. The same command continues a study that was killed."""
    from casestudy.study.study import study

    loaded = _load(model, device, dtype)
    asked = _behaviour(behaviour)
    folder = out or _folder(asked.name, model)
    with _progress("prompts") as progress:
        finished = study(
            asked,
            loaded,
            out=folder,
            prepend_bos=bos,
            executor=_executor(executor),
            workers=workers,
            address=address,
            memory=_bytes(memory),
            progress=progress,
            patch_progress=progress.cells,
            circuit_progress=progress.step,
        )
    path = finished.report()
    if as_json:
        _print_json(_headline(finished) | {"folder": str(folder), "report": str(path)})
    else:
        _print_headline(finished, path)


@app.command()
def mine(
    texts: Annotated[
        list[Path],
        typer.Argument(metavar="TEXT…", help="Files or folders: text, .jsonl or .parquet."),
    ],
    out: Annotated[Path, typer.Option(help="The behaviour file to write.")] = Path("prompts.jsonl"),
    preset: Annotated[
        str, typer.Option(help="full-stop-capitals, or decimal-point for those alone.")
    ] = "full-stop-capitals",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="How many contexts.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another sample for another seed.")] = 0,
    sampling: Annotated[
        str, typer.Option(help="balanced over the kinds of stop, or natural.")
    ] = "balanced",
    min_tokens: Annotated[int, typer.Option(help="Shortest context, BOS included.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Longest context, BOS included.")] = 128,
    shard: Annotated[str, typer.Option(metavar="I/K", help="Read the I-th of K parts.")] = "1/1",
    text_field: Annotated[
        str, typer.Option(help="Where .jsonl and .parquet rows keep their text.")
    ] = "text",
    model: ModelOption = "tiny",
    as_json: JsonOption = False,
) -> None:
    """Sample contexts that end in a full stop from texts, as a behaviour file for `run`."""
    from casestudy.behaviour.files import write_behaviour
    from casestudy.behaviour.mining import mine, read_sampling, read_shard

    if out.suffix != ".jsonl":
        raise CasestudyError(f"--out {out}", allowed="a name that ends in .jsonl")
    tokenizer = _load(model, "cpu", "float32").tokenizer
    with _progress("reading") as progress:
        mined = mine(
            texts,
            tokenizer,
            preset=preset,
            n=n,
            seed=seed,
            sampling=read_sampling(sampling),
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            shard=read_shard(shard),
            text_field=text_field,
            progress=progress.read,
        )
    write_behaviour(mined.behaviour, out)
    if as_json:
        counts = {"found": mined.found, "taken": mined.taken, "skipped": mined.skipped}
        _print_json({"file": str(out), "documents": mined.documents, **counts})
        return
    _table(
        f"full stops in {mined.documents:,} texts",
        ("kind", "found", "taken"),
        [(kind, f"{n:,}", f"{mined.taken.get(kind, 0):,}") for kind, n in mined.found.items()],
    )
    for reason, count in mined.skipped.items():
        _say(f"left out: {count:,} {_escape(reason)}")
    print(out)


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
def circuit(
    behaviour: Annotated[
        str, typer.Argument(metavar="[PRESET|FILE]", help="A preset's name or a behaviour file.")
    ] = "full-stop-capitals",
    model: ModelOption = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="A folder; studies/BEHAVIOUR-MODEL-circuit by default.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="eap, eap-ig-inputs or eap-ig-activations.")
    ] = "eap-ig-inputs",
    steps: Annotated[int, typer.Option(min=1, help="Of the integrals.")] = 5,
    rank: Annotated[str, typer.Option(help="Edges by absolute or by signed score.")] = "absolute",
    metric: Annotated[str, typer.Option(help="contrast, class, probability or kl.")] = "contrast",
    ablation: Annotated[
        str, typer.Option(help="What other edges carry: corrupted, mean or zero.")
    ] = "corrupted",
    faithful: Annotated[
        float, typer.Option(min=0, max=1, help="What the smallest circuit must reach.")
    ] = 0.85,
    family: Annotated[
        str | None, typer.Option(help="Of edits; the one that undoes the most by default.")
    ] = None,
    exact: Annotated[
        int, typer.Option(min=0, help="How many edges to patch exactly, drawn at random.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Of the split, the controls and the bootstrap.")] = 0,
    memory: MemoryOption = "2GB",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the circuit that carries a behaviour, with the evidence for and against it."""
    from casestudy.circuits.card import choices_of
    from casestudy.measure.metrics import read_kind
    from casestudy.study.circuit import CARD_FILE, IMPORTANCES_FILE, NAME, Search
    from casestudy.study.study import study

    loaded = _load(model, device, dtype)
    asked = _behaviour(behaviour)
    folder = out or _folder(asked.name, model, "circuit")
    search = Search(
        choices_of(
            method=method,
            steps=steps,
            rank=rank,
            ablation=ablation,
            faithful=faithful,
            exact_edges=exact,
            seed=seed,
        ),
        read_kind(metric),
        family,
    )
    with _progress("circuit") as progress:
        finished = study(
            asked,
            loaded,
            out=folder,
            only=["predictions", "ledger", NAME],
            prepend_bos=bos,
            memory=_bytes(memory),
            search=search,
            circuit_progress=progress.step,
        )
    path = finished.report()
    summary = finished.tables["circuit.summary"].rows()
    files = {"card": folder / CARD_FILE, "importances": folder / IMPORTANCES_FILE, "report": path}
    if as_json:
        _print_json(
            {"figures": summary, "edges": finished.tables["circuit.edges"].rows()}
            | {name: str(file) for name, file in files.items()}
        )
        return
    _table(
        f"{asked.name} on {loaded.name}: the circuit",
        ("figure", "value", "95 % interval", "pairs"),
        [
            (
                row["figure"],
                f"{row['value']:.3g}"
                if row["figure"] in ("edges", "nodes")
                else _figure(row["value"]),
                _interval([row["lower"], row["upper"]]),
                str(row["n"]),
            )
            for row in summary
        ],
    )
    _table(
        "its strongest edges",
        ("edge", "score", "exact"),
        [
            (
                f"{row['source']}->{row['target']}",
                f"{row['score']:+.3f}",
                "" if row.get("exact") is None else f"{row['exact']:+.3f}",
            )
            for row in finished.tables["circuit.edges"].rows()[:10]
        ],
    )
    for name, file in files.items():
        print(f"{name}: {file}")


@app.command()
def patch(
    clean: Annotated[str, typer.Argument(help="The prompt that shows the behaviour.")],
    corrupted: Annotated[str, typer.Argument(help="Its partner of as many tokens.")],
    site: Annotated[
        str, typer.Option(help="resid_pre, attn_out, mlp_out, z, q, k, v, pattern, …")
    ] = "resid_pre",
    by: Annotated[
        str | None, typer.Option(help="position, role, all or last; all for heads by default.")
    ] = None,
    direction: Annotated[
        str, typer.Option(help="denoising puts clean into corrupted, noising the reverse.")
    ] = "denoising",
    answer: Annotated[
        str | None, typer.Option("--answer", "-a", help="By default the model's own.")
    ] = None,
    counterpart: Annotated[
        str | None, typer.Option("--counterpart", "-c", help="By default its lower case.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the largest to show.")] = 20,
    figure: Annotated[
        Path | None, typer.Option(help="Write the heatmap as a page of its own.")
    ] = None,
    model: ModelOption = "tiny",
    memory: MemoryOption = "2GB",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Exchange one site's activations between two prompts, cell by cell, exactly."""
    from casestudy.behaviour.prompts import Prompt
    from casestudy.measure.patching import Effort, patch_prompts, read_by, read_direction

    loaded = _load(model, device, dtype)
    with _progress("cells") as progress:
        effort = Effort(
            memory=_bytes(memory), progress=lambda done, total: progress.cells("", done, total)
        )
        patched = patch_prompts(
            loaded,
            [Prompt(clean, answer=answer, counterpart=counterpart, corrupted=corrupted)],
            site,
            by=read_by(by),
            direction=read_direction(direction),
            prepend_bos=bos,
            effort=effort,
        )
    shares, effect = patched.normalised, patched.effect
    if figure is not None:
        shares.plot().write_html(figure, include_plotlyjs=True)
        _say(f"figure: {_escape(str(figure))}")
    rows = shares.to_polars().drop("lower", "upper", "n", "unit").to_dicts()
    changes = effect.to_polars()["value"].to_list()
    cells = [row | {"effect": change} for row, change in zip(rows, changes, strict=True)]
    baselines = dict(
        zip(
            patched.baselines.axis("run").labels,
            patched.baselines.values[:, 0].tolist(),
            strict=True,
        )
    )
    if as_json:
        _print_json({"about": shares.about, **baselines, "error": shares.error, "cells": cells})
        return
    axes = [axis.name for axis in shares.axes]
    cells.sort(key=lambda cell: -abs(cell["value"]))
    _table(
        f"{shares.name}: unpatched {baselines['unpatched']:.3f}, other run "
        f"{baselines['other']:.3f} logits",
        (*axes, "share", "logits"),
        [
            (*(visible(c[name]) for name in axes), f"{c['value']:+.3f}", f"{c['effect']:+.3f}")
            for c in cells[:top]
        ],
    )
    if len(cells) > top:
        _say(f"{len(cells) - top} smaller ones: --top, --json or --figure has them.")
    _say(f"self-check: {_gap(shares.error.get('gap'), shares.error.get('bound'))}")


@app.command()
def compare(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[A B | BEHAVIOUR]",
            help="Two studies' folders; or, with --model, a preset or a behaviour file.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model, or a folder of checkpoints; repeatable."),
    ] = None,
    revisions: Annotated[
        str | None, typer.Option(metavar="R1,R2,…", help="Of the one model, in order.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A page of the two, FILE.html; with --model, the studies' folder."),
    ] = None,
    answers: Annotated[
        str, typer.Option(help="With --model: the last checkpoint's answers for all, or own.")
    ] = "last",
    only: Annotated[
        str | None, typer.Option(help="With --model: measurements, comma-separated, or all.")
    ] = None,
    two_samples: Annotated[
        bool, typer.Option("--two-samples", help="Do not pair the prompts that are in both.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many differences to show.")] = 20,
    figure: Annotated[
        Path | None, typer.Option(help="With --model: write the curves as a page of its own.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set two studies side by side, or one behaviour on several checkpoints of a model."""
    given = studies or []
    if not model:
        if len(given) != 2:
            raise CasestudyError(
                f"{len(given)} studies and no --model",
                allowed="two studies' folders, or --model with --revisions",
            )
        _compare_two(given[0], given[1], two_samples, out, top, as_json)
        return
    if len(given) > 1:
        raise CasestudyError(f"{' '.join(given)} with --model", allowed="one behaviour")
    from casestudy.claims.emergence import ONLY, checkpoints, emergence, read_answers

    asked = checkpoints(model, revisions.split(",") if revisions else ())
    behaviour = _behaviour(given[0] if given else "full-stop-capitals")
    folder = out or Path("studies") / f"{behaviour.name}-{Path(model[0]).name}-checkpoints"
    chosen = None if only == "all" else only.split(",") if only else ONLY
    with _progress("prompts") as progress:
        emerged = emergence(
            asked,
            behaviour,
            out=folder,
            answers=read_answers(answers),
            only=chosen,
            prepend_bos=bos,
            device=device,
            dtype=dtype,
            progress=progress.of,
        )
    if figure is not None:
        emerged.contrasts.plot().write_html(figure, include_plotlyjs=True)
        _say(f"figure: {_escape(str(figure))}")
    if as_json:
        _print_json(emerged.as_dict() | {"folder": str(folder)})
    else:
        _print_emergence(emerged)
        _say(f"studies: {_escape(str(folder))}")


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(help="Findings, as docs/checking-explanations.md has it.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Instead of the file's; as for run.")
    ] = None,
    behaviour: Annotated[
        str | None, typer.Option(help="Instead of the file's: a preset or a behaviour file.")
    ] = None,
    memory: MemoryOption = "2GB",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Measure each finding of a file on a model; fails (1) unless all of them hold."""
    from casestudy.claims.check import check, read_findings
    from casestudy.measure.patching import Effort

    findings = read_findings(file)
    name = model or findings.model
    loaded = None if name is None else _load(name, device, dtype)
    found = check(findings, loaded, behaviour=behaviour, effort=Effort(memory=_bytes(memory)))
    if as_json:
        _print_json(found.as_dict())
    else:
        _print_checked(found)
    if not found.holds:
        raise typer.Exit(1)


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


@app.command()
def serve(
    study: Annotated[
        Path | None, typer.Argument(help="A study's folder: its prompts and its model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="As for `run`; the study's by default, or tiny."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8017,
    host: Annotated[
        str, typer.Option(help="The address to listen on and be called by.")
    ] = "127.0.0.1",
    device: DeviceOption = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="As for `run`; the study's by default, or float32.")
    ] = None,
    bos: BosOption = None,
) -> None:
    """Open the live explorer: type prompts, choose tokens, watch every panel follow."""
    from casestudy.show.explorer.server import serve
    from casestudy.show.explorer.study_prompts import picks_of

    picks = None if study is None else picks_of(study)
    name = model or (picks.model if picks else "") or "tiny"
    loaded = _load(name, device, dtype or (picks.dtype if picks else "") or "float32")
    serve(
        loaded,
        picks=picks,
        host=host,
        port=port,
        prepend_bos=picks.bos if picks and bos is None else bos,
        started=lambda address: print(address, flush=True),
    )


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


def _folder(behaviour: str, model: str, *more: str) -> Path:
    """Where a study is kept that no folder was named for."""
    return Path("studies") / "-".join((behaviour, Path(model).name.replace("@", "-"), *more))


def _behaviour(name: str) -> Any:
    """A preset, or a file's behaviour; what the file's reader left out goes to stderr."""
    from casestudy.behaviour.files import find_behaviour

    found = find_behaviour(name)
    for note in found.notes:
        _say(_escape(f"{name}: {note}"))
    return found


def _bytes(text: str) -> int:
    """2GB, 500MB or a plain number of bytes."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
    number = text.upper().strip()
    factor = 1
    for unit, size in units.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
            break
    try:
        value = int(float(number) * factor)
    except ValueError:
        value = 0
    if value <= 0:
        raise CasestudyError(f"--memory {text}", allowed="a size like 500MB or 2GB")
    return value


def _executor(name: str) -> Literal["local", "ray"]:
    if name == "local":
        return "local"
    if name == "ray":
        return "ray"
    raise CasestudyError(f"executor {name!r}", allowed="local, ray")


def _headline(study: Study) -> dict[str, Any]:
    """The figures a reader wants first."""
    mean, account = study.grids["logit_difference.mean"], study.grids["ledger.mean"]
    assert mean.n is not None
    main = mean.axes[0].labels[0]
    value = float(mean.values[0])
    terms = dict(
        zip(account.axis("term").labels, account.select(contrast=main).values, strict=True)
    )
    return {
        "model": study.manifest["model"]["name"],
        "behaviour": study.manifest["behaviour"]["name"],
        "contrast": main,
        "n": int(mean.n[0]),
        "logit_difference": _number(value),
        "interval": [_number(end[0]) for end in (mean.lower, mean.upper) if end is not None],
        "groups": _by_group(study, main),
        "without_b_U": _number(value - terms.get("final norm bias (b_U)", 0.0)),
        "largest_gap": account.error.get("gap"),
        "bound": account.error.get("bound"),
    }


def _by_group(study: Study, contrast: str) -> list[dict[str, Any]]:
    """Each group's mean logit difference."""
    if "logit_difference.by_group" not in study.grids:
        return []
    grid = study.grids["logit_difference.by_group"].select(contrast=contrast)
    assert grid.n is not None
    assert grid.lower is not None
    assert grid.upper is not None
    return [
        {
            "group": name,
            "n": int(grid.n[i]),
            "logit_difference": _number(grid.values[i]),
            "interval": [_number(grid.lower[i]), _number(grid.upper[i])],
        }
        for i, name in enumerate(grid.axis("group").labels)
    ]


def _print_headline(study: Study, path: Path) -> None:
    h = _headline(study)
    _table(
        f"{h['behaviour']} on {h['model']}",
        ("figure", "value"),
        [
            ("prompts with an answer", str(h["n"])),
            (f"mean logit difference, answer − {h['contrast']}", _figure(h["logit_difference"])),
            ("95 % interval", _interval(h["interval"])),
            ("the same without b_U", _figure(h["without_b_U"])),
            ("largest gap of the ledger", _gap(h["largest_gap"], h["bound"])),
        ],
    )
    if h["groups"]:
        _table(
            f"mean logit difference by group, answer − {h['contrast']}",
            ("group", "prompts", "mean", "95 % interval"),
            [
                (
                    group["group"],
                    str(group["n"]),
                    _figure(group["logit_difference"]),
                    _interval(group["interval"]),
                )
                for group in h["groups"]
            ],
        )
    print(f"report: {path}")


def _compare_two(
    a: str, b: str, two_samples: bool, out: Path | None, top: int, as_json: bool
) -> None:
    from casestudy.claims.compare import compare

    if out is not None and out.suffix != ".html":
        raise CasestudyError(f"--out {out}", allowed="a name that ends in .html")
    found = compare(a, b, paired=False if two_samples else None)
    if out is not None:
        from casestudy.show.compared import write_comparison

        _say(f"page: {_escape(str(write_comparison(found, out)))}")
    if as_json:
        _print_json(found.as_dict())
    else:
        _print_comparison(found, top)


def _print_comparison(found: Comparison, top: int) -> None:
    for side, folder, study in zip("AB", found.names, found.about, strict=True):
        print(f"{side}: {study}, {folder}")
    _table(
        "",
        ("what differs", "A", "B"),
        [(row["what"], _brief(row["a"]), _brief(row["b"])) for row in found.differs.rows()],
    )
    n = found.prompts
    how = "each compared with itself" if found.paired else "compared as two samples"
    print(f"{n['both']} prompts in both, {n['a']} in A alone, {n['b']} in B alone: {how}\n")
    rows = found.rows.rows()
    clear = sum(row["clear"] for row in rows)
    known = sum(row["lower"] is not None for row in rows)
    headline = [row for row in rows if row["measurement"] == "logit_difference"]
    others = [row for row in rows if row["measurement"] != "logit_difference"]
    for title, some in (
        ("mean logit difference by contrast", headline),
        (f"what else differs most, for its measurement ({len(others)} cells)", others[:top]),
    ):
        if some:
            columns = ("cell", "A", "B", "B − A", "95 % interval", "n")
            _table(title, columns, [_compared(row) for row in some])
            print()
    print(
        f"{clear} of {known} intervals leave out zero; where nothing differs, about "
        f"{known / 20:.0f} would."
    )
    why: dict[str, list[str]] = {}
    for row in found.absent.rows():
        said = {"a": "only in A", "b": "only in B", None: row["why"]}[row["only_in"]]
        why.setdefault(said, []).append(row["what"])
    for said, what in why.items():
        _say(_escape(f"not compared, {said}: {', '.join(what)}"))
    for note in found.notes:
        _say(_escape(note))


def _compared(row: dict[str, Any]) -> tuple[str, ...]:
    name = " ".join(filter(None, (row["measurement"], row["contrast"])))
    cell = f"{name}: {row['cell']}" if row["cell"] else name
    n = row["a_n"] if row["a_n"] == row["b_n"] else f"{row['a_n']}, {row['b_n']}"
    return (
        cell,
        _figure(row["a"]),
        _figure(row["b"]),
        f"{row['difference']:+.3f}",
        _interval([row["lower"], row["upper"]]),
        "" if n is None else str(n),
    )


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:11]}…{text[-12:]}"


def _print_emergence(found: Emergence) -> None:
    rank, first = found.answers["rank"], found.answers["top-1"]
    for name in found.contrasts.axes[0].labels:
        contrast = found.contrasts.select(contrast=name)
        assert contrast.lower is not None
        assert contrast.upper is not None
        assert contrast.n is not None
        largest = max(0.0, *(abs(v) for v in contrast.values if v == v))
        _table(
            f"mean logit difference, {name}",
            ("checkpoint", "mean", "95 % interval", "n", ""),
            [
                (
                    one.label,
                    _figure(_number(contrast.values[i])),
                    _interval([_number(contrast.lower[i]), _number(contrast.upper[i])]),
                    str(int(contrast.n[i])),
                    _bar(float(contrast.values[i]), largest),
                )
                for i, one in enumerate(found.checkpoints)
            ],
        )
        since = found.since[name]
        said = (
            "at the last checkpoint the interval holds zero"
            if since is None
            else (f"from {since} on every interval is clear of zero")
        )
        print(f"{said}\n")
    mass = found.class_mass
    masses = {} if mass is None else dict(zip(mass.axes[0].labels, mass.values, strict=True))
    largest_last = sorted(masses, key=lambda name: -masses[name][-1])[:3]
    _table(
        "means over prompts: the answer's rank (0 is the first), how often it is the first, and "
        "the mass of the largest classes",
        ("checkpoint", "rank", "first", *largest_last),
        [
            (
                one.label,
                f"{rank.values[i]:.1f}",
                f"{first.values[i]:.0%}",
                *(f"{masses[name][i]:.1%}" for name in largest_last),
            )
            for i, one in enumerate(found.checkpoints)
        ],
    )


def _print_checked(found: Checked) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(f"{found.behaviour} on {found.model}", style="italic"))
    for one in found.outcomes:
        style = {"holds": "green", "fails": "bold red"}.get(one.verdict, "yellow")
        console.print(Text(one.verdict, style=style) + Text(f": {one.claim}", style=""))
        console.print(Padding(Text(_measured(one)), (0, 0, 0, 4)))
    held = sum(one.verdict == "holds" for one in found.outcomes)
    print(f"{held} of {len(found.outcomes)} hold")


def _measured(one: Outcome) -> str:
    """What was measured of a finding, and what was claimed."""
    said = []
    if one.value is not None:
        interval = _interval([one.lower, one.upper])
        said.append(
            f"{one.value:.3f}{f' ({interval})' if interval else ''} {one.unit}, n = {one.n}"
        )
    if one.place is not None:
        ends = f" ({one.place[1]} to {one.place[2]})" if len(one.place) == 3 else ""
        said.append(f"place {one.place[0]}{ends} by size")
    said.append(f"claimed: {one.must}")
    return "; ".join([*said, *([one.why] if one.why else [])])


def _bar(value: float, largest: float, width: int = 20) -> str:
    """A bar from zero, to the left for what is negative."""
    if value != value or not largest:
        return ""
    filled = round(abs(value) / largest * width / 2)
    half = width // 2
    left, right = (filled, 0) if value < 0 else (0, filled)
    return " " * (half - left) + "█" * left + "│" + "█" * right


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _gap(gap: float | None, bound: float | None) -> str:
    return "" if gap is None or bound is None else f"{gap:.1e} (bound {bound:.0e})"


def _interval(ends: Sequence[float | None]) -> str:
    low, high = ends
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _number(value: Any) -> float | None:
    number = float(value)
    return None if number != number else number


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if title:  # a table's own is cut to the table's width
        console.print(Text(title, style="italic"))
    console.print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text)


class _progress:
    """A progress bar on stderr, for a study's states or for bytes read."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=not sys.stderr.isatty(),
        )
        self._grid = ""
        self._begun: tuple[float, int] | None = None

    def __enter__(self) -> _progress:
        self._bar.__enter__()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def __call__(self, state: State) -> None:
        said = [f"{state.done:,} of {state.total:,}"]
        if state.found:
            said.append(f"{state.found:,} stored before")
        if state.left is not None:
            said.append(f"{state.rate:.1f}/s")
            said.append(f"{_duration(state.left)} left")
        if state.memory:
            said.append(f"{state.memory / 1e9:.1f} GB")
        self._show(state.done, state.total, said)

    def of(self, name: str, state: State) -> None:
        """One of several studies' states."""
        self._show(state.done, state.total, [name, f"{state.done:,} of {state.total:,}"])

    def read(self, done: int, total: int) -> None:
        """Bytes read of all there are."""
        self._show(done, total, [f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"])

    def step(self, name: str, done: int, total: int) -> None:
        """Which step of how many begins."""
        self._show(done, total, [f"{name} ({done + 1} of {total})"])

    def cells(self, name: str, done: int, total: int) -> None:
        """Patched (cell, prompt) pairs of one grid."""
        now = time.perf_counter()
        if name != self._grid or self._begun is None:
            self._grid, self._begun = name, (now, done)
        start, before = self._begun
        said = [*([name] if name else []), f"{done:,} of {total:,} cells"]
        if done > before:
            rate = (done - before) / (now - start)
            said += [f"{rate:,.0f}/s", f"{_duration((total - done) / rate)} left"]
        self._show(done, total, said)

    def _show(self, done: int, total: int, said: Sequence[str]) -> None:
        self._bar.update(self._task, completed=done, total=total, description=", ".join(said))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
