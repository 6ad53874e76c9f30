"""How is the report of a stored study made?

`write_report` turns a study's folder into one HTML file that loads nothing from a network: styles,
figures, data and script are inside it, and a content security policy enforces this in the browser.
It needs no model, no torch and no network, and takes less than a second. Results that are missing
are listed in the report.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from casestudy.results.files import write_atomically
from casestudy.show import contents
from casestudy.show.blocks import Absent, Block, Section, SectionPart, Topic
from casestudy.show.page import environment, font, template_text
from casestudy.show.part_links import card_addresses, linked
from casestudy.show.sections import prompts, provenance, summary
from casestudy.show.stored import UNEXPECTED, Missing, StoredStudy
from casestudy.show.text import clean, shorten
from casestudy.study.store import Store


def write_report(study: Store | str | os.PathLike[str]) -> Path:
    """Write DIR/report.html, completely or not at all, and return its path.

    Args:
        study: a `Store`, or the folder of one.

    Raises: StudyError if the folder has no study or cannot be written.
    """
    store = study if isinstance(study, Store) else Store.open(study)
    path = store.folder / "report.html"
    write_atomically(path, report_html(StoredStudy.read(store)).encode("utf-8"))
    return path


def report_html(study: StoredStudy) -> str:
    """The whole page."""
    declared = provenance.declared_absent(study)
    sections, absent, shown = argument(study, declared)
    leftovers = SectionPart("", lambda study: provenance.leftovers(study, shown))
    for topic in (
        contents.PROMPTS,
        Topic("appendix", "Everything else that was stored", [leftovers]),
    ):
        section, missing, accounted = _section(topic, study)
        sections += [] if section is None else [section]
        absent += [entry for entry in missing if entry.what]
        shown |= accounted
    absent = [*declared, *absent]
    answer = summary.paragraphs(study)
    addresses = card_addresses(study.cards)
    page = (
        environment()
        .get_template("report.html")
        .render(
            title=summary.title(study),
            description=shorten(answer[0].striptags(), 300),
            study=study,
            answer=answer,
            sections=sections,
            absent=absent,
            facts=provenance.facts(study),
            manifest=clean(json.dumps(provenance.short_manifest(study), indent=1, default=str)),
            shared=prompts.shared(study) | {"cards": addresses},
            **frame(),
        )
    )
    return linked(page, addresses.get) if addresses else page


def argument(
    study: StoredStudy, declared: Sequence[Absent] = ()
) -> tuple[list[Section], list[Absent], set[str]]:
    """The sections that the study can fill, what is absent, and names of the results they show.

    If the study declares a whole section as not measured, its parts are not listed separately.
    """
    sections: list[Section] = []
    absent: list[Absent] = []
    shown: set[str] = set()
    for topic in contents.ARGUMENT:
        section, missing, accounted = _section(topic, study)
        shown |= accounted
        if section is not None:
            sections.append(section)
        elif any(topic.id in entry.what for entry in declared):
            continue
        absent += missing
    return sections, absent, shown


def _section(topic: Topic, study: StoredStudy) -> tuple[Section | None, list[Absent], set[str]]:
    """A section if any part has something to show; what is absent; the results it shows."""
    blocks: list[Block] = []
    absent: list[Absent] = []
    shown: set[str] = set()
    for part in topic.parts:
        try:
            blocks += part.blocks(study)
        except Missing as reason:
            absent.append(Absent(part.what, str(reason)))
        except UNEXPECTED as error:
            # A stored result of an unexpected shape loses its own figure, not the report.
            why = f"stored in a form this version cannot show ({error!r})"
            absent.append(Absent(part.what, why))
        else:
            shown |= part.accounts_for((*study.grids, *study.tables))
    return (Section(topic.id, topic.title, blocks) if blocks else None), absent, shown


def frame() -> dict[str, object]:
    """The policy, styles and script of every page."""
    script = template_text("figures.js") + template_text("report.js")
    return {
        "policy": _policy(script),
        "style": Markup(font() + template_text("plot.css") + template_text("report.css")),
        "script": Markup(script),
    }


def _policy(script: str) -> str:
    """Nothing may be fetched, and only our own script may run, even if escaping had failed."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    known = base64.b64encode(digest).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{known}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
