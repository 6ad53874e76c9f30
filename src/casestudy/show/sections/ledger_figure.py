"""How is one difference written, part by part? The waterfall of one prompt or one place."""

from __future__ import annotations

from casestudy.results.names import B_U
from casestudy.results.result import Grid
from casestudy.show import marks
from casestudy.show.blocks import Figure
from casestudy.show.sections.grouped_terms import grouped
from casestudy.show.sections.ledger import ledger_data, present
from casestudy.show.text import capital, number, signed


def ledger_figure(
    ledger: Grid, check: Grid, title: str, *, of: str, contrast: str, unit: str = "logits"
) -> Figure:
    """One prompt's account.

    Args:
        ledger, check: `ledger` and `ledger.check` at one contrast and prompt.
        title: of the figure.
        of: whose logit difference it is, in the genitive.
        contrast: what is weighed against what, in words.
        unit: of the terms; nats where the contrast is of log-probabilities.
    """
    what = "logit difference" if unit == "logits" else "difference"
    total = float(check.select(quantity="logit difference").values)
    gap = float(check.select(quantity="gap").values)
    ledger = grouped(present(ledger))
    terms = list(ledger.axis("term").labels)
    values = ledger.values.tolist()
    top = max(range(len(terms)), key=lambda i: abs(values[i]))
    return Figure(
        title,
        marks.Waterfall(terms, values, total, unit=unit, marked=(B_U,), total_label=what, row=16),
        f"Waterfall from 0 to {of} {what}, {signed(total)} {unit}; largest "
        f"term {terms[top]} ({signed(values[top])}); gap {number(gap)}.",
        ledger_data(ledger, total),
        f"{capital(contrast)}. Sum of the terms {number(sum(values), 4)}, {what} "
        f"{number(total, 4)}, gap {number(gap)} {unit}.",
    )
