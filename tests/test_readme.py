"""What the README says to type works as it stands."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from casestudy import cli
from casestudy.model.loading import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets_run(snippet: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 2


def test_commands_exist_with_their_options() -> None:
    for line in re.findall(r"^    casestudy (.*?)(?:  +#.*)?$", README, flags=re.MULTILINE):
        command, *words = line.split()
        help = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
        assert help.exit_code == 0, line
        for word in words:
            assert not word.startswith("--") or word in help.stdout, line


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)`?", README):
        assert f"\n{target}:" in makefile, target


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_bundled_model_is_there() -> None:
    assert (BUNDLED / "tiny" / "model.safetensors").is_file()
