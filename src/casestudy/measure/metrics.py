"""Which metrics other than the logit difference can measure an intervention?

Each metric is a function of the logits at the last token, for sweeps, gradients and circuits. Its
input is rows of logits and each row's prompt, its output a number per row, in float64, with a
gradient. A contrast of single tokens needs no such function: it is linear in the logits, and is
used directly.
Cost: the whole unembedding at every row, where a linear contrast needs a dot product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from casestudy.behaviour.contrast import Contrast, is_in
from casestudy.engine.readout import Metric
from casestudy.errors import MeasureError, one_of
from casestudy.model.decoder import run
from casestudy.model.model import Model
from casestudy.model.tokens import Tokens

Kind = Literal["contrast", "class", "probability", "kl"]


@dataclass(frozen=True)
class NamedMetric:
    """A metric with a name and a unit, for tables and sentences.

    Attributes:
        name: in the field's words ("logit difference").
        unit: of its values.
        of: the function.
    """

    name: str
    unit: str
    of: Metric

    def __call__(self, logits: Tensor, prompts: Tensor) -> Tensor:
        """(rows,) the metric of rows of logits, each with its prompt."""
        return self.of(logits, prompts)


NAMES: dict[Kind, tuple[str, str]] = {
    "contrast": ("logit difference", "logits"),
    "class": ("log-probability difference of two classes", "nats"),
    "probability": ("probability difference", "probability"),
    "kl": ("KL divergence from the clean run", "nats"),
}
"""Each kind's name and unit."""


def name_and_unit(metric: Contrast | Metric) -> tuple[str, str]:
    """A metric's name and unit; "metric" in its own unit if it has no name."""
    if isinstance(metric, NamedMetric):
        return metric.name, metric.unit
    if isinstance(metric, Contrast):
        return NAMES["contrast" if metric.linear else "class"]
    return "metric", "its own unit"


def metric_of(
    model: Model, contrast: Contrast, kind: Kind = "contrast", clean: Tokens | None = None
) -> Contrast | Metric:
    """The metric of this name.

    Args:
        model: the decoder.
        contrast: of the prompts, row by row.
        kind: "contrast" is the logit difference; "class" (and "contrast" of a class contrast) is
            log p(A) - log p(B) at each run's own probabilities; "probability" is p(answer) -
            p(counterpart) or p(A) - p(B); "kl" is KL(clean ‖ run), in nats.
        clean: the clean prompts, for "kl".

    Raises: MeasureError for "kl" without clean prompts, and for "class" without classes.
    """
    match kind:
        case "contrast":
            return contrast if contrast.linear else class_log_ratio(contrast)
        case "class":
            return class_log_ratio(contrast)
        case "probability":
            return probability_difference(contrast)
        case "kl":
            if clean is None:
                raise MeasureError("KL to the clean run without clean prompts")
            logits = run(model, clean, logits="last").logits
            assert logits is not None
            return kl_divergence(logits)


def read_kind(name: str) -> Kind:
    """A metric's name from the command line.

    Raises: MeasureError listing the names.
    """
    return one_of("metric", name, get_args(Kind), MeasureError)


def class_log_ratio(contrast: Contrast) -> Metric:
    """log p(A) - log p(B), with nothing frozen. Unit: nats.

    Raises: MeasureError for a contrast of single tokens, which has no classes.
    """
    if contrast.sides is None:
        raise MeasureError(
            f"{contrast.name!r} is no class contrast",
            hint="Name two classes in the behaviour (class_contrast)",
        )
    ids, sides = contrast.ids, contrast.sides

    def metric(logits: Tensor, prompts: Tensor) -> Tensor:
        rows = prompts.to(ids.device)
        chosen = logits.gather(1, ids[rows].to(logits.device)).double()
        side = sides[rows].to(logits.device)
        a, b = (chosen.masked_fill(~is_in(side, s), float("-inf")).logsumexp(1) for s in (1, -1))
        return a - b

    return NamedMetric(*NAMES["class"], metric)


def probability_difference(contrast: Contrast) -> Metric:
    """Σₜ weightₜ · p(t), with weight 1 in A and -1 in B for classes. Unit: probability."""
    weights = contrast.weights if contrast.sides is None else contrast.sides.double()
    ids = contrast.ids

    def metric(logits: Tensor, prompts: Tensor) -> Tensor:
        rows = prompts.to(ids.device)
        p = logits.double().softmax(1).gather(1, ids[rows].to(logits.device))
        return (p * weights[rows].to(logits.device)).sum(1)

    return NamedMetric(*NAMES["probability"], metric)


def kl_divergence(reference: Float[Tensor, "prompt d_vocab"]) -> Metric:
    """KL(reference ‖ run) in nats: 0 if a run predicts the same as the reference."""
    log_p = reference.detach().double().log_softmax(1)

    def metric(logits: Tensor, prompts: Tensor) -> Tensor:
        rows = log_p[prompts.to(log_p.device)].to(logits.device)
        return (rows.exp() * (rows - logits.double().log_softmax(1))).sum(1)

    return NamedMetric(*NAMES["kl"], metric)


def rows_of(metric: Contrast | Metric, prompts: list[int]) -> Contrast | Metric:
    """The metric for some of the prompts, which are numbered from zero."""
    if isinstance(metric, Contrast):
        return metric[prompts]

    def of_some(logits: Tensor, rows: Tensor) -> Tensor:
        return metric(logits, torch.tensor(prompts, device=rows.device)[rows])

    return NamedMetric(*name_and_unit(metric), of_some)


def signed(metric: Contrast | Metric, signs: Float[Tensor, " prompt"]) -> Contrast | Metric:
    """The metric times 1 or -1, prompt by prompt."""
    if isinstance(metric, Contrast):
        across = signs.to(metric.weights)
        ends = list(zip(metric.answers, metric.counterparts, strict=True))
        turned = [e if s > 0 else e[::-1] for e, s in zip(ends, signs.tolist(), strict=True)]
        sides = metric.sides
        return replace(
            metric,
            weights=metric.weights * across[:, None],
            constant=metric.constant * across,
            answers=tuple(a for a, _ in turned),
            counterparts=tuple(b for _, b in turned),
            sides=None if sides is None else sides * across[:, None].to(sides.dtype),
        )

    def of(logits: Tensor, prompts: Tensor) -> Tensor:
        found = metric(logits, prompts)
        return found * signs.to(found)[prompts]

    return NamedMetric(*name_and_unit(metric), of)
