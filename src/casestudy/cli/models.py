"""`casestudy models`: which models are known by name?"""

from __future__ import annotations

from casestudy.cli.options import JsonOption
from casestudy.cli.printing import print_json, print_table, say


def models(as_json: JsonOption = False) -> None:
    """List the models known by name: bundled, cached here, or on the hub."""
    from casestudy.model.loading import available

    rows = available()
    if as_json:
        listed = [{"name": n, "family": f, "where": w} for n, f, w in rows]
        print_json("models", {"models": listed})
        return
    print_table("models", ("name", "family", "where"), rows)
    say("A directory in Hugging Face layout, or any hub id of these families, works too.")
