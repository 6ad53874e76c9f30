"""Which files of the site are kept elsewhere in the repository?

The report's typeface lies with its templates: it is not kept twice.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

TEMPLATES = Path(__file__).parents[1] / "src" / "casestudy" / "show" / "templates"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with the files it found."""
    for name in ("source-serif-4.woff2", "source-serif-4.LICENSE"):
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(TEMPLATES / name)))
    return files
