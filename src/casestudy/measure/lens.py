"""At which depth does the preference appear?

Two projections of the residual stream at each depth, before a layer ("3_pre"), between its
attention and its MLP ("3_mid"; a parallel block has none) and after the last layer ("final_post"):

`lens` projects the stream at each prompt's last position on the contrast, with the final norm's
scale of the full run at every depth. It is linear, so depths add up: each step is exactly
the ledger's term of the layer in between. It leaves out the norm's bias (b_U); the row
"logits" after the last depth is the logit difference itself, and the last step is b_U and all
other terms that the ledger has after the layers. (TransformerLens: `accumulated_resid`,
`apply_ln_to_stack`.)

`lens.own_norm` is the usual logit lens (nostalgebraist 2020): each depth goes through the final
norm, with its own scale and with the norm's bias, and the unembedding, as if the model ended there.
It is not additive. `lens.top` applies it to the whole vocabulary, at every position, for a few
prompts.

`lens.by_role` shows whether the preference exists before the last position: the residual stream at
every role's tokens, projected on the prompt's own contrast with the final scale at each position.

Assumes that a direction has the same meaning in early layers as at the end. Belrose et al. 2023
("Eliciting Latent Predictions from Transformers with the Tuned Lens") show that this fails in some
models.
Cost: one projection per depth; `lens.top` one unembedding per depth and position, in a study at
chosen depths; `lens.by_role` the residual stream at every position, kept by the same run if it is
small and otherwise by a second one of up to a hundred prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.behaviour.chat import written
from casestudy.behaviour.contrast import BLOCK, Contrast
from casestudy.behaviour.prompts import Behaviour, Prompts, takes_prompts
from casestudy.behaviour.readouts import tokens_of
from casestudy.engine.batch import Batch, Measurement, run_whole
from casestudy.measure.examples import KEPT_BYTES, examples
from casestudy.measure.ledger import final_direction
from casestudy.model.config import ModelConfig, mlp_after_attention
from casestudy.model.decoder import apply_norm, run, unembed
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace
from casestudy.model.weights import Weights
from casestudy.results import names
from casestudy.results.by_role import by_role
from casestudy.results.names import LOGITS
from casestudy.results.result import Axis, Grid, Result, Table, concatenate_tables

TOP_K = 5
TOP_DEPTHS = 32
"""At so many depths at most does a study look at the whole vocabulary: all of 15 layers, more than
a table shows at once."""
ROLE_PROMPTS = 100
"""A study computes the lens by role for at most this many prompts, from the first."""
_TOGETHER = 8
_LOGIT_BYTES = 64 << 20
"""Bytes: logits of several depths are computed together up to this size."""


def depth_sites(config: ModelConfig) -> dict[str, tuple[Site, int | None]]:
    """The sites of each depth, by the field's labels, in order."""
    sites: dict[str, tuple[Site, int | None]] = {}
    for layer in range(config.n_layers):
        sites[f"{layer}_pre"] = (Site.RESID_PRE, layer)
        if mlp_after_attention(config):
            sites[f"{layer}_mid"] = (Site.RESID_MID, layer)
    return {**sites, "final_post": (Site.FINAL_RESID, None)}


def chosen_depths(config: ModelConfig) -> list[str]:
    """The depths at which a study looks at the whole vocabulary: all, or of more than `TOP_DEPTHS`
    those before layers at equal distances, and the last."""
    labels = list(depth_sites(config))
    if len(labels) <= TOP_DEPTHS:
        return labels
    step = -(-config.n_layers // (TOP_DEPTHS - 1))
    return [*(f"{layer}_pre" for layer in range(0, config.n_layers, step)), labels[-1]]


def keep_for_lens(model: Model) -> Sequence[Keep]:
    """The residual stream at every depth and the final scale, at the last positions only."""
    return [site.at(last=True) for site in _everywhere(model)]


def also_keep(model: Model, index: Sequence[int], tokens: Tokens) -> Sequence[Keep]:
    """The same at every position, for the lens by role and of examples."""
    needed = any(number < ROLE_PROMPTS for number in index)
    sites = depth_sites(model.config)
    values = tokens.ids.numel() * len(sites) * model.config.d_model
    small = values * model.weights.W_E.element_size() <= KEPT_BYTES
    return [Keep(site) for site in _everywhere(model)] if needed and small else []


def _everywhere(model: Model) -> list[Site]:
    """What the lens by role reads at every position."""
    sites = {site for site, _ in depth_sites(model.config).values()}
    if model.weights.final_norm is not None:
        sites.add(Site.FINAL_SCALE)
    return sorted(sites, key=lambda site: site.value)


def _is_whole(trace: Trace) -> bool:
    """Whether a run kept the residual stream at every position."""
    return (Site.RESID_PRE, 0) in trace.values


def _key(where: tuple[Site, int | None]) -> Site | tuple[Site, int]:
    site, layer = where
    return site if layer is None else (site, layer)


def _last(trace: Trace, where: tuple[Site, int | None]) -> Tensor:
    return trace.last(_key(where))


def lens_values(
    model: Model, trace: Trace, directions: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "depth batch"]:
    """The stream at each depth, projected on a contrast with the final scale frozen.

    Args:
        model: which was run.
        trace: the run.
        directions: of the contrast, before the final norm is folded in (`Batch.directions`).

    Shape:  (depth, batch), depths as `depth_sites`, in float64; without b_U.
    Raises: SiteNotKept when the trace was made without `keep_for_lens`.
    """
    scale = trace.last(Site.FINAL_SCALE) if model.weights.final_norm is not None else None
    direction = final_direction(model, directions, scale)
    sites = depth_sites(model.config).values()
    return torch.stack([(_last(trace, at).double() * direction).sum(1) for at in sites])


def own_norm_values(batch: Batch) -> Float[Tensor, "contrast depth batch"]:
    """The contrasts as if the model ended at each depth: with own scale, biases and soft-cap.

    Shape:  (contrast, depth, batch), depths as `depth_sites`, in float64.
    Cost:   a projection per contrast of tokens; a class contrast needs the logits of its classes,
            which are taken in one pass over the unembedding for all depths and prompts.
    Raises: SiteNotKept when the trace was made without `keep_for_lens`.
    """
    config, weights = batch.model.config, batch.model.weights
    normed = torch.stack(
        [
            apply_norm(config, weights.final_norm, _last(batch.trace, at))
            for at in depth_sites(config).values()
        ]
    )
    values = []
    for contrast, u in zip(batch.contrasts, batch.directions, strict=True):
        if not contrast.linear:
            values.append(_log_odds(batch.model, normed, contrast))
        elif config.final_softcap is None:
            values.append(_projected(weights, normed, contrast, u))
        else:
            values.append(_weighed_tokens(batch.model, normed, contrast))
    return torch.stack(values)


def _log_odds(
    model: Model, normed: Float[Tensor, "depth batch d_model"], contrast: Contrast
) -> Float[Tensor, "depth batch"]:
    """log p(A) - log p(B) of each prompt's classes at each depth, in blocks of the vocabulary.

    The softmax's normaliser cancels, so this is the difference of two log-sum-exps; NaN for a
    prompt without classes.
    """
    found = normed.new_zeros(normed.shape[:2], dtype=torch.float64)
    for side in (1, -1):
        for prompts, ids in contrast.members(side):
            where = prompts.to(normed.device)
            found[:, where] += side * _log_mass(model, normed[:, where], ids.to(normed.device))
    return found


def _log_mass(
    model: Model, normed: Float[Tensor, "depth batch d_model"], ids: Int[Tensor, " k"]
) -> Float[Tensor, "depth batch"]:
    """The logarithm of Σ exp(logit) over some tokens, in float64; minus infinity for none."""
    total = normed.new_full(normed.shape[:2], float("-inf"), dtype=torch.float64)
    rows = max(1, normed.shape[0] * normed.shape[1])
    for some in ids.split(max(1, min(BLOCK, _LOGIT_BYTES // (8 * rows)))):
        logits = unembed(model.config, model.weights, normed, some)
        total = torch.logaddexp(total, _wide(logits).logsumexp(-1).double())
    return total


def _wide(logits: Float[Tensor, "*rows token"]) -> Float[Tensor, "*rows token"]:
    """At least float32: of fewer bits than 32 are the logits exact, and a sum of them in float64
    takes eight times as long."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _weighed_tokens(
    model: Model, normed: Float[Tensor, "depth batch d_model"], contrast: Contrast
) -> Float[Tensor, "depth batch"]:
    """A contrast of tokens from its own tokens' logits, with the soft-cap."""
    device = normed.device
    own = [
        unembed(model.config, model.weights, normed[:, i], ids.to(device))
        for i, ids in enumerate(contrast.ids)
    ]
    logits = torch.stack(own, 1).double()  # depth batch k
    return (logits * contrast.weights.to(device)).sum(-1) + contrast.constant.to(device)


def _projected(
    weights: Weights,
    normed: Float[Tensor, "depth batch d_model"],
    contrast: Contrast,
    u: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "depth batch"]:
    value = torch.stack([(x.double() * u).sum(1) for x in normed])
    if weights.b_U is not None:
        value = value + contrast.weigh(weights.b_U.expand(len(contrast), -1))
    return value + contrast.constant.to(value.device)


def measure_lens(batch: Batch) -> list[Result]:
    """Both lenses of every contrast, and the whole vocabulary for the example prompts."""
    frozen, own = curves(batch)
    roles = _by_role(batch, [i for i, n in enumerate(batch.index) if n < ROLE_PROMPTS])
    model, depths = batch.model, chosen_depths(batch.model.config)
    tops = []
    for row, index, tokens in examples(batch):
        where = (batch.trace, row) if _is_whole(batch.trace) else (_streams(model, tokens), 0)
        tops.append(_top(model, *where, index, TOP_K, depths))
    return [frozen, own, roles, *([concatenate_tables(tops)] if tops else [])]


def curves(batch: Batch) -> tuple[Grid, Grid]:
    """Both lenses of every contrast at the last positions: `lens` and `lens.own_norm`."""
    labels = tuple(depth_sites(batch.model.config))
    frozen = []
    for contrast, u in zip(batch.contrasts, batch.directions, strict=True):
        logits = contrast.value(batch.logits)[None]
        frozen.append(torch.cat((lens_values(batch.model, batch.trace, u), logits)))
    own = own_norm_values(batch)
    return (
        Grid(
            names.LENS,
            torch.stack(frozen).cpu().numpy(),
            (batch.contrast_axis, Axis("depth", (*labels, LOGITS)), batch.prompt_axis),
            "logits",
            about="The residual stream projected on the contrast, the final norm's scale frozen "
            "at its traced value, without b_U; each step is the ledger's term of the part in "
            f"between. The last row, {LOGITS!r}, is the logit difference itself, with b_U.",
        ),
        Grid(
            names.LENS_OWN_NORM,
            own.cpu().numpy(),
            (batch.contrast_axis, Axis("depth", labels), batch.prompt_axis),
            "logits",
            about="The plain logit lens: the contrast as if the model ended at each depth, the "
            "stream normalised by its own scale, b_U included, classes weighed anew.",
        ),
    )


def _by_role(batch: Batch, rows: Sequence[int]) -> Grid:
    """The lens at every position of these prompts, averaged by role; NaN for the others."""
    sites = depth_sites(batch.model.config)
    width = int(batch.tokens.lengths.max())
    shape = (len(batch.contrasts), len(sites), width, len(batch.index))
    values = torch.full(shape, float("nan"), dtype=torch.float64)
    together = max(1, len(rows)) if _is_whole(batch.trace) else _TOGETHER
    for start in range(0, len(rows), together):
        some = list(rows[start : start + together])
        found = _at_every_position(batch, some).cpu()  # contrast depth row pos
        values[:, :, : found.shape[3], some] = found.transpose(2, 3)
    axes = (
        batch.contrast_axis,
        Axis("depth", tuple(sites)),
        Axis.count("pos", width),
        batch.prompt_axis,
    )
    about = "The residual stream at the tokens of each role, projected on the prompt's contrast."
    grid = Grid(names.LENS, values.numpy(), axes, "logits", about=about)
    return by_role(grid, batch.roles, batch.role_names)


def _at_every_position(
    batch: Batch, rows: Sequence[int]
) -> Float[Tensor, "contrast depth row pos"]:
    """As `lens_values`, at every position of some prompts, with each position's final scale."""
    model, trace, places = batch.model, batch.trace, list(rows)
    if not _is_whole(trace):
        trace = run(model, batch.tokens[rows], keep=_everywhere(model))
        places = list(range(len(rows)))
    u = torch.stack([final_direction(model, u[rows], None) for u in batch.directions])
    depths = [
        torch.einsum("bpd,cbd->cbp", trace[_key(at)][places].double(), u)
        for at in depth_sites(model.config).values()
    ]
    projected = torch.stack(depths, 1)
    if model.weights.final_norm is None:
        return projected
    return projected / trace[Site.FINAL_SCALE][places].double()[..., 0]


LENS = Measurement("lens", keep_for_lens, measure_lens, also=also_keep)


def lens(
    model: Model,
    behaviour: Prompts,
    *,
    norm: Literal["final", "own"] = "final",
) -> Grid:
    """Project the residual stream at every depth on a behaviour's contrasts.

    Args:
        model: what `load` returns.
        behaviour: a behaviour, a text or texts (see `Prompts`).
        norm: "final" freezes the final norm's scale of the full run, so that depths add up; "own"
            is the usual logit lens, each depth with its own scale and with b_U.

    Shape:  (contrast, depth, prompt), at each prompt's last position.
    Unit:   logits. With "final" the depths leave out b_U and the row "logits", after the last, is
            the logit difference; with "own" the last depth is the logit difference.
    """
    batch = run_whole(model, behaviour, [LENS])
    name = {"final": names.LENS, "own": names.LENS_OWN_NORM}[norm]
    return next(r for r in curves(batch) if r.name == name)


def lens_by_role(model: Model, behaviour: Prompts) -> Grid:
    """Project the residual stream at the tokens of every role on a behaviour's contrasts.

    Shape:  (contrast, depth, role, prompt); NaN if a prompt does not have the role.
    Unit:   logits, without b_U; a role's tokens are averaged.
    """
    batch = run_whole(model, behaviour, [])
    return _by_role(batch, batch.index)


@takes_prompts
def logit_lens(
    model: Model,
    behaviour: Prompts,
    *,
    top_k: int = TOP_K,
) -> Table:
    """The prediction at each position if the model ended at each depth (logit lens).

    Args:
        model: which predicts.
        behaviour: a behaviour, a text or texts (see `Prompts`).
        top_k: how many tokens per depth and position.

    Rows:   one per prompt, depth, position and rank, with the token at the position, the
            predicted token, its id and probability.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    Raises: PromptError for a prompt that cannot be run.
    """
    behaviour = written(model, Behaviour.of(behaviour))
    model = behaviour.read_by(model)
    tokens = tokens_of(model, behaviour.prompts)
    depths = list(depth_sites(model.config))
    prompts = [tokens[[i]] for i in range(len(tokens))]
    return concatenate_tables(
        [_top(model, _streams(model, one), 0, i, top_k, depths) for i, one in enumerate(prompts)]
    )


def _best(
    model: Model, normed: Float[Tensor, "depth pos d_model"], top_k: int
) -> list[tuple[Int[Tensor, "pos top_k"], Float[Tensor, "pos top_k"]]]:
    """The most probable tokens at each depth and position, and their probabilities."""
    logits = unembed(model.config, model.weights, normed)
    best = logits.topk(top_k, dim=-1)
    largest = _wide(best.values[..., :1])
    mass = _wide(logits).sub_(largest).exp_().sum(-1, keepdim=True)
    relative = (_wide(best.values) - largest).double().exp()
    return list(zip(best.indices, relative / mass, strict=True))


def _streams(model: Model, tokens: Tokens) -> Trace:
    kept = {site for site, _ in depth_sites(model.config).values()}
    return run(model, tokens, keep=kept, logits="last")  # names overflow


def _top(
    model: Model, trace: Trace, row: int, label: int, top_k: int, depths: Sequence[str]
) -> Table:
    """The whole vocabulary at every position of one prompt, a few depths at a time.

    Args:
        model: which was run.
        trace: the run, with the residual stream at every position.
        row: of the prompt in the run.
        label: the prompt's number.
        top_k: how many tokens per depth and position.
        depths: at which, by their labels.
    """
    config, weights = model.config, model.weights
    sites = depth_sites(config)
    ids = trace.tokens.rows()[row]
    read = model.tokenizer.labels(ids)
    top_k = min(top_k, config.d_vocab)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt", "depth", "pos", "read", "rank", "token", "id", "prob")
    }
    read_at = [
        apply_norm(config, weights.final_norm, trace.of(_key(sites[depth]), row))
        for depth in depths
    ]
    together = max(1, _LOGIT_BYTES // (config.d_vocab * len(ids) * read_at[0].element_size()))
    best = [
        one
        for start in range(0, len(read_at), together)
        for one in _best(model, torch.stack(read_at[start : start + together]), top_k)
    ]
    for depth, (found, prob) in zip(depths, best, strict=True):
        predicted = found.flatten().tolist()
        columns["prompt"] += [label] * len(predicted)
        columns["depth"] += [depth] * len(predicted)
        columns["pos"] += [pos for pos in range(len(ids)) for _ in range(top_k)]
        columns["read"] += [text for text in read for _ in range(top_k)]
        columns["rank"] += list(range(top_k)) * len(ids)
        columns["token"] += model.tokenizer.labels(predicted)
        columns["id"] += predicted
        columns["prob"] += prob.flatten().tolist()
    return Table(
        names.LENS_TOP,
        columns,
        "The logit lens: what each position would predict if the model ended at each depth"
        f"{'' if len(depths) == len(sites) else f' (of {len(sites)} depths these {len(depths)})'}; "
        "`read` is the token there, rank 0 the most probable next one.",
    )
