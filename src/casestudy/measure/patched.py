"""What are the values of a grid of patches, per prompt and on average?

Raw values are the contrast itself. Normalised values are ratios of means, (mean patched - mean
unpatched) / (mean other - mean unpatched); effects are mean changes. Both come with the number of
prompts and a 95 % interval over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from casestudy.behaviour.contrast import Contrast
from casestudy.engine.plan import SweepPlan
from casestudy.engine.readout import Metric
from casestudy.engine.sweep import Sweep
from casestudy.errors import MeasureError
from casestudy.model.token import Token
from casestudy.results import names
from casestudy.results.result import Array, Axis, Grid, Shown
from casestudy.results.stats import mean_interval, ratio_in_parts

LEAST = 0.05
"""Two runs that differ by less than this share of the larger logit difference give no shares."""


@dataclass(frozen=True)
class Patched(Shown):
    """One grid of patches, with its baselines.

    Attributes:
        raw: the contrast with each activation patched; the last axis is `prompt`. NaN if a prompt
            has no such position or role.
        baselines: the same prompts' contrast without a patch, axes `run` ("unpatched", and "other"
            for a pair) and `prompt`.
        known: 1 if a raw value equals the unpatched one by construction, 0 if it was computed;
            axes as `raw`.
        plan: how the sweep was divided; the same plan gives the same numbers.
        weighed: each prompt's answer and counterpart, for a contrast of known tokens; their tokens.
    """

    raw: Grid
    baselines: Grid
    known: Grid
    plan: SweepPlan
    weighed: tuple[tuple[tuple[Token, ...], tuple[Token, ...]], ...] = ()

    @property
    def shares_mean_something(self) -> bool:
        """Whether the two runs differ enough for shares.

        False if their mean difference is zero or below `LEAST` of the larger of the two means. Then
        the denominator of a share is almost zero; use `effect`.
        """
        if "other" not in self.baselines.axis("run").labels:
            return False
        unpatched, other = self._means
        apart = abs(other - unpatched)
        return apart > 0 and apart >= LEAST * max(abs(unpatched), abs(other))

    @property
    def _means(self) -> tuple[float, float]:
        """Over prompts, of the unpatched run and the other."""
        unpatched, other = (float(np.nanmean(run)) for run in self.baselines.values)
        return unpatched, other

    @property
    def normalised(self) -> Grid:
        """Ratios of means over prompts, with n and a 95 % interval; no `prompt` axis.

        1 is the other run, 0 the unpatched one, NaN if the two do not differ. The interval is that
        of the linearised ratio (`ratio_in_parts`).

        Raises: MeasureError for an ablation, which has no other run.
        """
        if "other" not in self.baselines.axis("run").labels:
            raise MeasureError(
                f"{self.raw.name} is an ablation: there is no other run to be a share of",
                hint="Use `effect`, the change in logits",
            )
        unpatched, other = self._means
        same = (
            f" Both runs have the same mean, {other:.4g}, so there are no shares; see `effect`."
            if unpatched == other
            else ""
        )
        parts = ratio_in_parts(self.raw.values, *self.baselines.values)
        shares = replace(self.raw, unit="share of the difference between the runs")
        return replace(
            _averaged(shares, parts),
            name=self.raw.name.removesuffix(names.RAW),
            about=f"{self.raw.about} Normalised as a ratio of means: 0 is the unpatched run, 1 "
            f"the other.{same}",
        )

    @property
    def effect(self) -> Grid:
        """Mean change of the contrast, patched minus unpatched, with n and a 95 % interval."""
        grid = _averaged(self.raw, self.raw.values - self.baselines.values[0])
        return replace(
            grid,
            name=names.effect(self.raw.name.removesuffix(names.RAW)),
            about=f"{self.raw.about} Mean over prompts of patched minus unpatched.",
        )

    @property
    def shown(self) -> Grid:
        """The first of `summary`."""
        return self.summary[0]

    @property
    def summary(self) -> tuple[Grid, ...]:
        """`normalised` (if there is another run) and `effect`."""
        if "other" in self.baselines.axis("run").labels:
            return self.normalised, self.effect
        return (self.effect,)

    def grids(self) -> tuple[Grid, ...]:
        """All grids to store."""
        return (*self.summary, self.raw, self.baselines, self.known)


def _averaged(grid: Grid, values: Array) -> Grid:
    """A grid's prompt axis, its last, replaced by mean, interval and n."""
    flat = np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
    mean, lower, upper, n = mean_interval(flat, unit=grid.unit)
    shape = values.shape[:-1]
    return replace(
        grid,
        values=mean.reshape(shape),
        lower=lower.reshape(shape),
        upper=upper.reshape(shape),
        n=n.reshape(shape),
        axes=grid.axes[:-1],
    )


def patched(
    found: Sweep,
    name: str,
    about: str,
    axes: tuple[Axis, ...],
    labels: tuple[str, ...] | None,
    contrast: Contrast | Metric,
) -> Patched:
    """A sweep's values as a grid with named axes, with its baselines."""
    n = len(found.base)
    prompts = Axis.count("prompt", n) if labels is None else Axis("prompt", labels)
    unit = "logits" if isinstance(contrast, Contrast) else "metric"
    axes = (*axes, prompts)
    shape = tuple(map(len, axes))
    runs, rows = ["unpatched"], [found.base]
    if found.other is not None:
        runs.append("other")
        rows.append(found.other)
    values, known = found.values.reshape(shape), found.known.reshape(shape)
    return Patched(
        Grid(names.raw(name), values, axes, unit, error=found.error, about=about),
        Grid(
            names.baselines(name),
            np.stack(rows),
            (Axis("run", tuple(runs)), prompts),
            unit,
            about="Each prompt's contrast in the unpatched run, and in the one patched from.",
        ),
        Grid(
            names.known(name),
            known.astype(np.float64),
            axes,
            "yes or no",
            about="1 where a patch changes nothing by construction and was not computed.",
        ),
        found.plan,
    )
