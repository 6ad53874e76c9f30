"""What is the mean of an activation over tokens with the same role?

These means are used for mean ablation, of activations and of circuits. They are over reference
prompts, at the same role, or at the same position if a token has no role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from casestudy.behaviour.roles import PAIR_ROLES
from casestudy.engine.cells import Values
from casestudy.engine.packing import pack
from casestudy.errors import MeasureError
from casestudy.measure.pairs import Roles
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.sites import Keep, Site
from casestudy.model.tokens import Tokens
from casestudy.model.trace import Trace

Key = TypeVar("Key")

_RUN_AT_ONCE = 16
"""Reference prompts per run."""


def mean_values(
    model: Model,
    site: Site,
    layers: Sequence[int],
    tokens: Tokens,
    roles: Roles | None,
    reference: Tokens,
    reference_roles: Roles | None,
) -> Values:
    """A site's mean over reference prompts at a token's role, as a source of replacements.

    A token with several roles counts for the first. A token without a role is averaged with the
    other tokens without a role at its position. The roles that every pair has (`PAIR_ROLES`) are
    not used: they say where two prompts differ and end, not what a token is.

    Raises: MeasureError if a role or position of `tokens` occurs in no reference prompt.
    """
    if site is Site.PATTERN:
        raise MeasureError("a pattern has no mean over prompts of other lengths", allowed="zero")
    wanted, known, n_classes = token_classes(tokens, roles, reference, reference_roles)
    means = class_means(
        model,
        reference,
        known,
        n_classes,
        [site.at(layers)],
        lambda trace: {layer: trace[site, layer] for layer in layers},
    )
    table = wanted.to(model.device)

    def values(_: Site, layer: int | None, prompts: Tensor, positions: Tensor) -> Tensor:
        assert layer is not None
        return means[layer][table[prompts, positions]]

    return values


def token_classes(
    tokens: Tokens, roles: Roles | None, reference: Tokens, reference_roles: Roles | None
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "reference reference_pos"], int]:
    """The class of each token and of each reference token, and the number of classes. Tokens of one
    class are averaged.

    A token's class is that of its first role, or of its position if it has none; padding is -1.

    Raises: MeasureError if a role or position of `tokens` occurs in no reference prompt.
    """
    names = {name for row in (*(roles or ()), *(reference_roles or ())) for name in row}
    names -= PAIR_ROLES
    classes = {name: i for i, name in enumerate(sorted(names))}
    wanted = _classes(tokens, roles, classes)
    known = _classes(reference, reference_roles, classes)
    n_classes = 1 + max(int(wanted.max()), int(known.max()))
    missing = set(wanted[wanted >= 0].tolist()) - set(known[known >= 0].tolist())
    if missing:
        first = min(missing)
        place = sorted(names)[first] if first < len(names) else f"position {first - len(names)}"
        raise MeasureError(
            f"{place} occurs in no reference prompt, so it has no mean",
            hint="Give a larger reference, or roles that every prompt has",
        )
    return wanted, known, n_classes


def _classes(
    tokens: Tokens, roles: Roles | None, classes: Mapping[str, int]
) -> Int[Tensor, "batch pos"]:
    """Each token's class: of its first role, else of its position (after all roles); padding -1."""
    width = tokens.ids.shape[1]
    found = torch.arange(width).repeat(len(tokens), 1) + len(classes)
    found[~tokens.mask.cpu()] = -1
    for b, row in enumerate(roles or ()):
        taken: set[int] = set()
        for name, positions in row.items():
            for p in positions if name in classes else ():
                if p not in taken:
                    found[b, p] = classes[name]
                    taken.add(p)
    return found


def _together(reference: Tokens, most_tokens: int | None) -> list[list[int]]:
    """Reference prompts that are run together."""
    if most_tokens is None:
        everything = list(range(len(reference)))
        return [everything[i : i + _RUN_AT_ONCE] for i in range(0, len(everything), _RUN_AT_ONCE)]
    lengths = reference.lengths.tolist()
    return pack(lengths, fits=lambda n, longest, _: n * longest <= most_tokens)


def class_means(
    model: Model,
    reference: Tokens,
    known: Int[Tensor, "reference reference_pos"],
    n_classes: int,
    keep: Sequence[Keep],
    read: Callable[[Trace], Mapping[Key, Float[Tensor, "batch pos ..."]]],
    most_tokens: int | None = None,
) -> dict[Key, Float[Tensor, "n_classes ..."]]:
    """Means over all reference tokens of each class (see `token_classes`), in float64.

    Args:
        known: each reference token's class.
        keep: the sites that the runs over the reference keep.
        read: maps a run to the activations to average.
        most_tokens: so many are run together at most, padding included; one prompt always is.

    Cost: a run of the reference, a few prompts at a time; only sums are held.
    """
    sums: dict[Key, Tensor] = {}
    for some in _together(reference, most_tokens):
        part = reference[some].to(model.device)
        trace = run(model, part, keep=keep)
        which = known[some][:, : part.ids.shape[1]].to(model.device)
        for key, values in read(trace).items():
            if key not in sums:
                shape = (n_classes, *values.shape[2:])
                sums[key] = values.new_zeros(shape, dtype=torch.float64)
            for classes, rows in zip(which, values, strict=True):  # float64 of one prompt a time
                there = classes >= 0
                sums[key].index_add_(0, classes[there], rows[there].double())
    counts = known[known >= 0].bincount(minlength=n_classes).clamp(min=1).to(model.device)
    return {
        key: (total / counts.view(-1, *[1] * (total.ndim - 1))).to(model.dtype)
        for key, total in sums.items()
    }
