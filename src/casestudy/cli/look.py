"""`casestudy predict`, `patch` and `serve`: a look at one prompt or a pair of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casestudy.cli.options import (
    READING,
    BosOption,
    DeviceOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    Reading,
    ReadoutOption,
    ScoringOption,
    SpecialOption,
    StrictOption,
    TopOption,
    check_target,
    read_budget,
    read_readout,
    read_scoring,
    read_study_model,
    say_notices,
)
from casestudy.cli.printing import escape, gap, print_json, print_table, say, write_figure
from casestudy.cli.progress import ProgressBar
from casestudy.errors import CasestudyError, one_of
from casestudy.show.text import clean, visible

if TYPE_CHECKING:
    from casestudy.measure.patching import By, Patched
    from casestudy.measure.predictions import AnswerScore
    from casestudy.model.token import Token


def predict(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    model: ModelOption = "tiny",
    answer: Annotated[
        list[str] | None, typer.Option("--answer", "-a", help="Score this answer; repeatable.")
    ] = None,
    readout: ReadoutOption = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many to show.")] = 10,
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Show the most probable next tokens, and how given answers stand."""
    from casestudy.behaviour.prompts import Prompt
    from casestudy.behaviour.readouts import row_of
    from casestudy.measure.predictions import predictions, score_answer
    from casestudy.model.notices import one_per_kind

    loaded, read = reading.prompt(model, Prompt(prompt, readout=read_readout(readout)))
    ids = row_of(loaded.tokenizer, read)
    tokens = loaded.tokenizer.labels(ids)
    top = predictions(loaded, read, top_k=top_k).rows()
    scores = [score_answer(loaded, read, text) for text in answer or ()]
    say_notices(loaded, [read])
    for notice in one_per_kind(n for score in scores for n in score.notices):
        say(escape(notice))
    if as_json:
        kept = [{k: row[k] for k in ("token", "id", "logit", "prob")} for row in top]
        answers = [_score(s) for s in scores]
        about = {"prompt": prompt, "text": read.text, "tokens": tokens, "ids": ids}
        print_json("predict", about | {"top": kept, "answers": answers})
    else:
        _print_predictions(tokens, top)
        _print_scores(scores)


def _score(score: AnswerScore) -> dict[str, Any]:
    return {
        "answer": score.answer,
        "tokens": [token.label for token in score.tokens],
        "ids": list(score.ids),
        "rank": score.place,
        "logit": score.logit,
        "log_prob": score.log_prob,
        "prob": score.prob,
    }


def _print_predictions(tokens: list[str], top: list[dict[str, Any]]) -> None:
    print_table(
        " ".join(map(visible, tokens)),
        ("rank", "token", "logit", "probability"),
        [
            (
                str(row["rank"] + 1),
                visible(row["token"]),
                f"{row['logit']:.2f}",
                f"{row['prob']:.2%}",
            )
            for row in top
        ],
    )


def _print_scores(scores: list[AnswerScore]) -> None:
    if not scores:
        return
    print_table(
        "answers",
        ("answer", "tokens", "rank", "log-probability", "probability"),
        [
            (
                visible(s.answer),
                " ".join(map(visible, s.tokens)),
                "" if s.place is None else str(s.place),
                f"{s.log_prob:.3f}",
                f"{s.prob:.2%}",
            )
            for s in scores
        ],
    )


ByOption = Annotated[
    str | None,
    typer.Option(
        help="Patch each position, each role, all positions together, or the last token alone."
    ),
]
RoleOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Patch by role and show this role's cells alone: 'last token', 'changed tokens', "
        "'BOS', 'final full stop', …",
    ),
]
SiteOption = Annotated[
    str, typer.Option(help="resid_pre, attn_out, mlp_out, z, q, k, v, pattern, …")
]


def patch(
    clean: Annotated[
        str, typer.Argument(metavar="CLEAN", help="The prompt that shows the behaviour.")
    ],
    corrupted: Annotated[
        str,
        typer.Argument(
            metavar="CORRUPTED",
            help="The same prompt, changed so that the behaviour is gone; as many tokens.",
        ),
    ],
    site: SiteOption = "resid_pre",
    by: ByOption = None,
    role: RoleOption = None,
    readout: ReadoutOption = None,
    scoring: ScoringOption = "sum",
    direction: Annotated[
        str, typer.Option(help="denoising puts clean into corrupted, noising the reverse.")
    ] = "denoising",
    answer: Annotated[
        str | None, typer.Option("--answer", "-a", help="By default the model's own.")
    ] = None,
    counterpart: Annotated[
        str | None, typer.Option("--counterpart", "-c", help="By default its lower case.")
    ] = None,
    top: TopOption = 20,
    figure: Annotated[
        Path | None, typer.Option(help="Write the heatmap as a page of its own.")
    ] = None,
    model: ModelOption = "tiny",
    memory: MemoryOption = "2GB",
    reading: Reading = READING,
    as_json: JsonOption = False,
) -> None:
    """Activation patching: copy one site's activations between two prompts, cell by cell."""
    from casestudy.behaviour.prompts import Prompt
    from casestudy.measure.patching import read_direction
    from casestudy.measure.patching_prompts import patch_prompts

    check_target("--figure", figure)
    pair = Prompt(clean, answer=answer, counterpart=counterpart, corrupted=corrupted)
    loaded, pair = reading.prompt(model, pair)
    say_notices(loaded, [pair])
    with ProgressBar("cells") as progress:
        patched = patch_prompts(
            loaded,
            [pair],
            site,
            by=_by(by, role),
            direction=read_direction(direction),
            readout=read_readout(readout),
            scoring=read_scoring(scoring),
            budget=read_budget(memory),
            progress=progress.cells,
        )
    cells, weighed = _cells(patched, role), _weighed(patched, direction, scoring)
    if as_json:
        shares = patched.normalised
        about = {"about": shares.about, **weighed, "error": shares.error}
        print_json("patch", about | {"cells": cells})
    else:
        _print_patched(patched, weighed, cells, top)
    if not patched.shares_mean_something:
        say(_NO_SHARES)
    write_figure(patched.normalised, figure)  # last: where it cannot be written, the rest was said


def _baselines(patched: Patched) -> dict[str, float]:
    """The one pair's contrast in each of its two runs."""
    runs = patched.baselines.axis("run").labels
    return dict(zip(runs, patched.baselines.values[:, 0].tolist(), strict=True))


_NO_SHARES = (
    "Warning: the two runs differ by almost nothing, so that shares of the difference mean "
    "nothing; see the effects."
)


def _weighed(patched: Patched, direction: str, scoring: str) -> dict[str, Any]:
    """What is weighed, the difference of either run, and which of them is patched."""
    ((answer, counterpart),) = patched.weighed
    runs = _baselines(patched)
    unpatched = "corrupted" if direction == "denoising" else "clean"
    other = "clean" if unpatched == "corrupted" else "corrupted"
    return {
        "answer": _answer(answer),
        "counterpart": _answer(counterpart),
        "unit": patched.raw.unit,
        "scoring": scoring if max(len(answer), len(counterpart)) > 1 else None,
        "direction": direction,
        "unpatched_run": unpatched,
        unpatched: runs["unpatched"],
        other: runs["other"],
        **runs,
        "warning": None if patched.shares_mean_something else _NO_SHARES,
    }


def _answer(tokens: Sequence[Token]) -> dict[str, Any]:
    """An answer of one token, or of several."""
    if len(tokens) == 1:
        return {"token": tokens[0].label, "id": tokens[0].id}
    return {"tokens": [token.label for token in tokens], "ids": [token.id for token in tokens]}


def _by(by: str | None, role: str | None) -> By | None:
    """How a prompt is cut into places; by role where one is asked for."""
    from casestudy.measure.patching import read_by

    if role is not None and by not in (None, "role"):
        raise CasestudyError(
            f"--role {role!r} with --by {by}", allowed="--role alone, or --by role"
        )
    return "role" if role is not None else read_by(by)


def _cells(patched: Patched, role: str | None = None) -> list[dict[str, Any]]:
    """Every cell, or those of one role, with its share of the difference between the runs, and its
    effect in logits."""
    rows = patched.normalised.to_polars().drop("lower", "upper", "n", "unit").to_dicts()
    changes = patched.effect.to_polars()["value"].to_list()
    known = patched.shares_mean_something
    if role is not None:
        one_of("--role", role, patched.raw.axis("role").labels, CasestudyError)
    return [
        row | {"value": row["value"] if known else None, "effect": change}
        for row, change in zip(rows, changes, strict=True)
        if role is None or row["role"] == role
    ]


def _print_patched(
    patched: Patched, about: dict[str, Any], found: list[dict[str, Any]], top: int
) -> None:
    shares = patched.normalised
    axes = [axis.name for axis in shares.axes]
    cells = sorted(found, key=lambda cell: -abs(cell["effect"]))
    ((answer, counterpart),) = (
        tuple(visible("".join(token.label for token in side)) for side in pair)
        for pair in patched.weighed
    )
    what = {
        None: "logit difference",
        "sum": "log-probability difference",
        "mean": "difference of the mean log-probability per token",
        "first": "logit difference of the first tokens that differ",
    }[about["scoring"]]
    known = patched.shares_mean_something
    print_table(
        f"{shares.name}, {about['direction']}: {answer} against {counterpart}, {what} "
        f"clean {about['clean']:.3f}, corrupted {about['corrupted']:.3f}; unpatched is the "
        f"{about['unpatched_run']} run",
        (*axes, *(["share"] if known else []), patched.raw.unit),
        [
            (
                *(clean(c[name]) if name == "role" else visible(c[name]) for name in axes),
                *([f"{c['value']:+.3f}"] if known else []),
                f"{c['effect']:+.3f}",
            )
            for c in cells[:top]
        ],
    )
    if len(cells) > top:
        say(f"{len(cells) - top} smaller ones: --top, --json or --figure has them.")
    say(f"self-check: {gap(shares.error.get('gap'), shares.error.get('bound'))}")


def serve(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY", help="A study's folder: its prompts and its model."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="As for `run`; the study's by default, or tiny."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="TEXT", help="Files or folders of text for cards of parts; repeatable."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 8017,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    device: DeviceOption = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="As for `run`; the study's by default, or float32.")
    ] = None,
    bos: BosOption = None,
    special: SpecialOption = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Open the live explorer: type prompts, choose tokens, watch every panel follow."""
    from casestudy.behaviour.corpus import files_of
    from casestudy.results.part_card import stored_cards
    from casestudy.show.explorer.part_cards import PartCards
    from casestudy.show.explorer.server import serve
    from casestudy.show.explorer.study_prompts import study_prompts_of

    if corpus:
        files_of(corpus)  # a wrong name is said at once, not at the first click
    picks = None if study is None else study_prompts_of(study)
    known = picks.model if picks else ""
    dtype = dtype or (picks.dtype if picks else "") or "float32"
    start = picks.bos if picks and bos is None else bos
    loaded = read_study_model(model, known, device, dtype, start, special)
    strict = strict or (picks is not None and picks.strict)
    serve(
        loaded.with_strict_tokens(strict),
        picks=picks,
        cards=PartCards(
            corpus=tuple(corpus or ()),
            stored={} if study is None else {c.part: c for c in stored_cards(study).values()},
            study=picks.name if picks else "",
        ),
        host=host,
        port=port,
        started=lambda address: _say_address(address, as_json),
    )


def _say_address(address: str, as_json: bool) -> None:
    if as_json:
        print_json("serve", {"address": address})
    else:
        print(address)
    sys.stdout.flush()
