"""Frequencies of rotary position embeddings, from config.json.

config.json has rope_theta beside rope_scaling, or both in rope_parameters; both forms are read. The
scalings for long contexts are those of "YaRN" (Peng et al. 2023), "LongRoPE" (Ding et al. 2024) and
Llama 3.1. They change the frequencies, independently of the prompt. Two depend on the prompt's
length: "dynamic" beyond n_ctx, which no prompt exceeds here, and "longrope" beyond its original
context. Here that context is n_ctx, so that a prompt's result does not depend on the other prompts'
lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from casestudy.errors import ModelError
from casestudy.model.config import Rotary
from casestudy.model.families.reading import Fields

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """Rotary position embeddings, and the number of positions they support."""

    rotary: Rotary
    n_ctx: int


def read_rope(
    fields: Fields, d_head: int, n_ctx: int, *, theta: float = 10_000.0, partial: float = 1.0
) -> Rope:
    """The rotary position embeddings of a whole config.json.

    Args:
        fields: the configuration.
        d_head: dimensions of a head.
        n_ctx: positions of the model.
        theta: the family's base, used if config.json has none.
        partial: the family's share of rotated dimensions per head, used if config.json has none.
    """
    theta = fields.get("rope_theta", "rotary_emb_base", default=theta)
    partial = fields.get("partial_rotary_factor", "rotary_pct", default=partial)
    original = fields.get("original_max_position_embeddings", default=n_ctx)
    group = fields.group("rope_parameters", "rope_scaling")
    return rope_of(group, d_head, n_ctx, theta=theta, partial=partial, original=original)


def rope_of(
    group: Fields,
    d_head: int,
    n_ctx: int,
    *,
    theta: float,
    partial: float = 1.0,
    original: int | None = None,
) -> Rope:
    """The rotary position embeddings of one group of parameters; see `read_rope`.

    Raises: ModelError for a scaling that is not supported, or parameters that do not fit it.
    """
    kind = group.get("rope_type", "type", default="default")
    if kind in ("su", "yarn") and "short_factor" in group.entries:
        kind = "longrope"  # its names in the first Phi-3 checkpoints
    if kind not in KINDS:
        raise ModelError(f"{group.where} asks for the scaling {kind!r}", allowed=", ".join(KINDS))
    theta = group.get("rope_theta", default=theta)
    dim = int(d_head * group.get("partial_rotary_factor", default=partial))
    if dim % 2 or not dim:
        raise ModelError(
            f"{group.where} rotates {dim} dimensions of a head", allowed="an even number above 0"
        )
    original = group.get("original_max_position_embeddings", default=original or n_ctx)
    plain = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    magnitude = 1.0
    match kind:
        case "default":
            frequencies = plain
        case "dynamic":
            _factor(group)
            frequencies = plain
        case "linear":
            frequencies = [f / _factor(group) for f in plain]
        case "llama3":
            frequencies = _llama3(group, plain, original)
        case "yarn":
            frequencies, magnitude = _yarn(group, plain, dim, theta, original, n_ctx)
        case _:
            frequencies, magnitude = _longrope(group, plain, original, n_ctx)
            n_ctx = min(n_ctx, original)
    group.check_all_read()
    return Rope(Rotary(tuple(frequencies), magnitude=magnitude), n_ctx)


def _factor(group: Fields, default: float = 0.0) -> float:
    factor = group.get("factor", default=default)
    if factor < 1:
        raise ModelError(f"{group.where} has the factor {factor:g}", allowed="1 or more")
    return factor


def _llama3(group: Fields, plain: list[float], original: int) -> list[float]:
    """Long wavelengths are stretched by the factor, short ones kept, the rest interpolated."""
    factor = _factor(group)
    low = group.get("low_freq_factor", default=1.0)
    high = group.get("high_freq_factor", default=4.0)

    def scaled(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        return frequency * (keep + (1 - keep) / factor)

    return [scaled(frequency) for frequency in plain]


def _yarn(
    group: Fields, plain: list[float], dim: int, theta: float, original: int, n_ctx: int
) -> tuple[list[float], float]:
    """Interpolates linearly between kept and stretched frequencies, between two dimensions."""
    factor = _factor(group, default=n_ctx / original)

    def bound(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = bound(group.get("beta_fast", default=32.0))
    high = bound(group.get("beta_slow", default=1.0))
    if group.get("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001  # as in the reference implementation, to avoid a division by zero

    def scaled(i: int, frequency: float) -> float:
        stretch = min(max((i - low) / width, 0.0), 1.0)
        return frequency * (1 - stretch + stretch / factor)

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    m, m_all = group.get("mscale", default=0.0), group.get("mscale_all_dim", default=0.0)
    implied = temperature(m) / temperature(m_all) if m and m_all else temperature(1.0)
    magnitude = group.get("attention_factor", default=implied)
    return [scaled(i, frequency) for i, frequency in enumerate(plain)], magnitude


def _longrope(
    group: Fields, plain: list[float], original: int, n_ctx: int
) -> tuple[list[float], float]:
    """One divisor per frequency: those for short prompts, to which n_ctx is limited."""
    nothing: list[float] = []
    short = group.get("short_factor", default=nothing)
    group.ignore("long_factor")
    if len(short) != len(plain):
        raise ModelError(
            f"{group.where} has {len(short)} short factors", allowed=f"{len(plain)}, one per pair"
        )
    factor = group.get("factor", default=n_ctx / original)
    implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    magnitude = group.get("attention_factor", default=implied)
    return [f / divisor for f, divisor in zip(plain, short, strict=True)], magnitude
