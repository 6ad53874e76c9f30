"""Which files of the site are kept elsewhere in the repository?

The changelog, the guide for contributors and the bundled model's card with its pictures stand where
people look for them first, and the report's typeface lies with its templates: none is kept twice.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TINY = "src/casestudy/model/bundled/tiny"
TEMPLATES = "src/casestudy/show/templates"
ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "tiny/model-card.md": f"{TINY}/MODEL_CARD.md",
    **{f"tiny/{name}": f"{TINY}/{name}" for name in ("loss.svg", "emergence.svg", "emergence.csv")},
    **{
        f"assets/{name}": f"{TEMPLATES}/{name}"
        for name in ("source-serif-4.woff2", "source-serif-4.LICENSE")
    },
}
"""From a place in the site to the file."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with the files it found."""
    for place, path in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files
