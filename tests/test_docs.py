"""What the README and the documentation say to type works as it stands."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from casestudy import cli
from casestudy.model.loading import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BY_HAND = [p for p in PAGES if "Made by" not in p.read_text("utf-8").splitlines()[0]]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(path: Path, language: str) -> list[str]:
    """A page's blocks in one language, in order."""
    found = re.findall(
        rf"^```{language}\b[^\n]*\n(.*?)^```", path.read_text("utf-8"), flags=re.DOTALL | re.M
    )
    return [str(block) for block in found]


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a reader who works with transformers has at hand."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch")
    folder = shutil.copytree(BUNDLED / "tiny", tmp_path_factory.mktemp("hf") / "tiny")
    # the file's float16 takes a hundred times as long on a CPU without such products
    read = transformers.AutoModelForCausalLM.from_pretrained
    return {
        "hf_model": read(folder, dtype=torch.float32),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(folder),
    }


FEW_PAIRS = """\
import casestudy.study.causal, casestudy.study.circuit
casestudy.study.causal.MOST_PAIRS = casestudy.study.circuit.MOST_PAIRS = 6
"""
"""What a page's whole study patches and seeks its circuit on here; by itself, all its prompts."""

WHOLE_STUDY = re.compile(r"cs\.study\((?![^)]*only=)")
WITH_CODE = [page for page in PAGES if fenced(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
@pytest.mark.slow
def test_snippets_run(
    page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A page's blocks run one after another, as its reader would type them."""
    blocks = fenced(page, "python")
    if any(WHOLE_STUDY.search(block) for block in blocks):
        # in a process of its own, where shapes are not checked: half the time
        (tmp_path / "page.py").write_text("\n".join([FEW_PAIRS, *blocks]), encoding="utf-8")
        subprocess.run([sys.executable, "page.py"], cwd=tmp_path, check=True, timeout=300)
        return
    names: dict[str, Any] = {}
    if any("hf_model" in block for block in blocks):
        names |= request.getfixturevalue("in_memory")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, name(page), "exec"), names)


def test_there_are_snippets() -> None:
    assert len(WITH_CODE) >= 6


def commands(path: Path) -> Iterator[list[str]]:
    """What a page says to type after `casestudy`, in indented blocks and in shells."""
    lines = re.findall(r"^    (casestudy .*)$", path.read_text("utf-8"), flags=re.M)
    lines += "\n".join(fenced(path, "sh")).splitlines()
    for line in lines:
        words = line.split("#")[0].split()
        if words[:1] == ["casestudy"]:
            yield words[1:]


@pytest.mark.parametrize("page", [p for p in BY_HAND if any(commands(p))], ids=name)
def test_commands_exist_with_their_options(page: Path) -> None:
    helps: dict[str, str] = {}
    for command, *words in commands(page):
        if command not in helps:
            asked = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
            assert asked.exit_code == 0, command
            helps[command] = asked.stdout
        for word in words:
            assert not word.startswith("--") or word in helps[command], (command, word)


@pytest.mark.parametrize("page", BY_HAND, ids=name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    text = page.read_text("utf-8")
    named = re.findall(r"(?:`|^    )make ([a-z0-9-]+)", text, flags=re.M)
    named += re.findall(r"^make ([a-z0-9-]+)", "\n".join(fenced(page, "sh")), flags=re.M)
    for target in named:
        assert f"\n{target}:" in makefile, target


@pytest.mark.parametrize("page", BY_HAND, ids=name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    for target in [*targets, *re.findall(r'(?:src|srcset)="([^"]+)"', text)]:
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def anchors(page: Path) -> set[str]:
    """What a link may follow "#" with: headings as Python-Markdown's toc names them, given ids, and
    the objects of a reference page."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    titles = [re.sub(r"\{[^}]*\}|\]\([^)]*\)", "", title) for title in titles]
    found = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower()) for t in titles}
    found |= set(re.findall(r"\{ ?#([\w.-]+) ?\}", text))
    return found | set(re.findall(r"^::: ([\w.]+)$", text, re.M))


def test_every_anchor_that_a_page_links_to_is_there() -> None:
    known = {page: anchors(page) for page in PAGES}
    linked = [
        (page, (page.parent / path).resolve() if path else page, anchor)
        for page in PAGES
        for path, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text("utf-8"))
    ]
    assert linked
    for page, target, anchor in linked:
        assert anchor in known[target], f"{name(page)}: {name(target)} has no #{anchor}"


def test_the_bundled_model_is_there() -> None:
    assert (BUNDLED / "tiny" / "model.safetensors").is_file()


def test_generated_pages_are_as_the_code_says() -> None:
    written = runpy.run_path(str(DOCS / "make_reference.py"))["pages"]()
    for path, text in written.items():
        assert path.read_text("utf-8") == text, f"{name(path)} is stale: make docs-reference"


def test_every_page_is_in_the_navigation_once() -> None:
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = re.findall(r": ([\w./-]+\.md)$", settings.partition("\nnav:")[2], flags=re.M)
    elsewhere = re.findall(r'"([\w./-]+\.md)": ', (DOCS / "site_files.py").read_text("utf-8"))
    here = [p.relative_to(DOCS).as_posix() for p in PAGES[1:]]
    assert sorted(listed) == sorted([*here, *elsewhere])


def test_the_site_asks_no_host_for_anything() -> None:
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "font: false" in settings
    assert "http" not in settings
    for path in (DOCS / "assets").iterdir():
        if path.suffix in (".css", ".js"):
            assert "http" not in path.read_text("utf-8"), name(path)


@pytest.mark.large
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(https?:[^\s\">]+)",
            page.read_text("utf-8"),
        )
        assert loaded == [], page.name


@pytest.mark.slow
def test_the_flagship_page_has_the_studys_figures(tmp_path: Path) -> None:
    """Every figure that docs/flagship.md quotes, from the study it says to run."""
    import casestudy
    from casestudy.show.text import number, percent, signed

    study = casestudy.study("full-stop-capitals", "tiny", out=tmp_path / "s")
    page = (DOCS / "flagship.md").read_text("utf-8").replace("\u00a0", " ")

    def mean(result: str, **where: str) -> Any:
        return study.grids[result].select(**where)

    difference = mean("logit_difference.mean", contrast="lowercase")
    ledger = mean("ledger.mean", contrast="lowercase")
    terms = dict(zip(ledger.axis("term").labels, ledger.values.tolist(), strict=True))
    heads = mean("attribution.head.mean", contrast="lowercase")
    kinds = [
        sum(v for term, v in terms.items() if term.startswith(part)) for part in ("mlp", "attn")
    ]
    mass = mean("class_mass.mean")
    shares = dict(zip(mass.axis("class").labels, mass.values.tolist(), strict=True))
    controls = mean("controls.logits.mean", contrast="lowercase")
    noising = study.grids["patching.noising.z.all"]
    lower = mean("logit_difference.by_group", contrast="lowercase", group="all lower")
    quoted = [
        f"**{number(float(difference.values))} logits** (95 % interval "
        f"{number(float(difference.lower))} to {number(float(difference.upper))}, n = 14)",
        f"the same contrast is {signed(float(lower.values))}",
        f"The MLP layers write {signed(kinds[0])}, b_U {signed(terms['final norm bias (b_U)'])}, "
        f"and the attention layers {signed(kinds[1])} in sum",
        f"No head's direct contribution exceeds {number(float(heads.values[:, :-1].max()), 2)}",
        f"gives {number(float(controls.select(control='b_U').values))} of the "
        f"{number(float(difference.values))}",
        f"prefers these answers by {number(float(controls.select(control='unigram').values))}",
        f"{percent(shares['space+Capital'])} of the probability, a newline "
        f"{percent(shares['newline'])}, lower case {percent(shares['space+lower'])}",
        f"takes away {number(float(noising.select(layer='0', head='2').values))} of the difference",
    ]
    flat = " ".join(page.split())
    for words in quoted:
        assert words.replace("\u00a0", " ") in flat, words
    assert noising.values.argmax() == 2
    edges = study.tables["circuit.edges"].rows()[:2]
    assert [(e["source"], e["target"]) for e in edges] == [
        ("embed", "head 0.2<v>"),
        ("head 0.2", "mlp 0"),
    ]
    nodes = {row["node"]: row for row in study.tables["circuit.nodes"].rows()}
    assert all(nodes[name]["faithfulness_without"] < 0.1 for name in ("head 0.2", "mlp 0"))
    assert abs(float(heads.select(layer="0", head="2").values)) < 0.01  # "almost zero"
