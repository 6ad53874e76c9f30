"""`--chat`: each command reads a conversation as the template writes it, special tokens parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from casestudy.behaviour.files import load_behaviour
from casestudy.model.chat import Chat
from casestudy.model.chat_template import template_hash
from tests.helpers import call

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "assistant:"
)
SAID, CHANGED = "It was late.", "it was late."
ANSWERS = ("-a", " He", "-c", " he")


def rendered(said: str) -> str:
    return f"<|endoftext|>user: {said}<|endoftext|>assistant: So"


@pytest.fixture
def model(toy_folder: Callable[..., Path]) -> str:
    return str(toy_folder(n_positions=256))


@pytest.fixture
def chat(tmp_path: Path) -> tuple[str, ...]:
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    return ("--chat", "--chat-template", str(file), "--assistant-prefix", " So")


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    status, out, err = call(capsys, *arguments, "--json")
    assert status == 0, err
    return dict(json.loads(out))


@pytest.mark.parametrize(
    ("command", "texts", "options"),
    [
        ("predict", (SAID,), ("-a", " He")),
        ("explain", (SAID,), ("--corrupted", CHANGED, *ANSWERS)),
        ("patch", (SAID, CHANGED), ANSWERS),
    ],
)
def test_a_command_reads_what_the_template_writes(
    capsys: pytest.CaptureFixture[str],
    model: str,
    chat: tuple[str, ...],
    command: str,
    texts: tuple[str, ...],
    options: tuple[str, ...],
) -> None:
    ours = found(capsys, command, *texts, *options, *chat, "--model", model)
    by_hand = [rendered(one) if one in (SAID, CHANGED) else one for one in (*texts, *options)]
    theirs = found(capsys, command, *by_hand, "--parse-special", "--model", model)
    if "prompt" in ours:
        assert (ours.pop("prompt"), theirs.pop("prompt")) == (SAID, rendered(SAID))
        assert ours["text"] == rendered(SAID)
    assert ours == theirs
    tokens = ours.get("tokens", ["<|endoftext|>"])
    assert isinstance(tokens, list)
    assert tokens.count("<|endoftext|>") == (
        2 if "tokens" in ours else 1
    )  # one BOS, one turn's end


def test_checkpoints_are_compared_and_findings_checked_on_conversations(
    capsys: pytest.CaptureFixture[str],
    model: str,
    chat: tuple[str, ...],
    toy_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    files = [tmp_path / "said.toml", tmp_path / "hand.toml"]
    for file, texts in zip(
        files, ((SAID, CHANGED), (rendered(SAID), rendered(CHANGED))), strict=True
    ):
        prompts = [f"[[prompts]]\ntext = {json.dumps(t)}\n" for t in texts]
        parsed = "" if file is files[0] else "parse_special = true\n"
        file.write_text(f'name = "late"\n{parsed}' + "".join(prompts))
    models = ("--model", model, "--model", str(toy_folder(n_positions=256, seed=1)))
    ours, theirs = (
        found(capsys, "compare", str(file), *models, *how, "--out", str(tmp_path / f"{i}"))
        for i, (file, how) in enumerate(zip(files, (chat, ()), strict=True))
    )
    for one in (ours, theirs):
        one.pop("folder")
    assert ours == theirs
    findings = tmp_path / "findings.toml"
    findings.write_text(
        f'behaviour = "{files[1]}"\n[[finding]]\nclaim = "It prefers a capital"\n'
        'measure = "logit_difference"\nat_least = -1e6\n'
    )
    check = ("check", str(findings), "--model", model)
    theirs = found(capsys, *check)
    ours = found(capsys, *check, "--behaviour", str(files[0]), *chat)
    assert ours == theirs
    status, _, err = call(capsys, "compare", "a", "b", "--chat")
    assert status == 2
    assert "--chat with --model" in " ".join(err.split())


def test_a_study_of_conversations_says_how_they_were_written(
    capsys: pytest.CaptureFixture[str], model: str, chat: tuple[str, ...], tmp_path: Path
) -> None:
    messages = json.dumps([{"role": "user", "content": SAID}])
    rows = [{"text": SAID, "answer": " He", "counterpart": " he"}, {"text": messages}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "study"
    command = ("run", str(tmp_path / "own.jsonl"), "--only", "predictions", "--out", str(folder))
    found(capsys, *command, *chat, "--model", model)
    about = json.loads((folder / "manifest.json").read_text())["behaviour"]["chat"]
    assert about["template_sha256"] == template_hash(TEMPLATE)
    assert about["assistant_prefix"] == " So"
    page = (folder / "report.html").read_text("utf-8")
    assert f"Chat template</dt><dd>SHA-256 {template_hash(TEMPLATE)}" in page.replace("\n", "")


def test_a_new_file_holds_messages_and_runs(
    capsys: pytest.CaptureFixture[str], model: str, chat: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "new.toml"
    made = found(capsys, "new", SAID, *ANSWERS, *chat, "--out", str(file), "--model", model)
    behaviour = load_behaviour(file)
    assert behaviour.chat == Chat(" So", TEMPLATE)
    assert behaviour.prompts[0].text == SAID
    partners = made["partners"]
    assert isinstance(partners, list)
    assert partners, "edits of the message"
    assert not any("user:" in partner["text"] for partner in partners)
    command = ("run", str(file), "--only", "predictions", "--out", str(tmp_path / "study"))
    ran = found(capsys, *command, "--model", model)
    assert ran["logit_difference"] == pytest.approx(made["logit_difference"], abs=1e-5)


def test_what_cannot_be_read_is_an_error_and_no_traceback(
    capsys: pytest.CaptureFixture[str], model: str, chat: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "own.csv").write_text(f"text\n{SAID}\n")
    for arguments, why in (
        (("predict", SAID, "--chat"), "no chat template"),
        (("predict", "[]", *chat), "without messages"),
        (("predict", SAID, "--chat-template", str(tmp_path / "none")), "cannot be read"),
        (
            ("run", str(tmp_path / "own.csv"), "--chat", "--out", str(tmp_path / "s")),
            "no chat template",
        ),
    ):
        status, out, err = call(capsys, *arguments, "--model", model)
        assert (status, out) == (2, ""), arguments
        assert why in " ".join(err.split())


def test_every_door_says_what_is_read_as_plain_text_and_what_to_add(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    text = "It was<|endoftext|>"
    (tmp_path / "own.csv").write_text(f"text,answer,counterpart\n{text}, He, he\n")
    on_a_file = (str(tmp_path / "own.csv"), "--out", str(tmp_path / "s"))
    for arguments in (
        ("predict", text),
        ("explain", text, *ANSWERS),
        ("patch", text, text.lower(), *ANSWERS),
        ("new", text, *ANSWERS, "--out", str(tmp_path / "new.toml")),
        ("run", *on_a_file, "--only", "predictions"),
    ):
        status, _, err = call(capsys, *arguments, "--model", model)
        said = " ".join(err.split())
        assert status == 0, said
        assert "holds the text of a special token (<|endoftext|>)" in said, arguments
        assert re.search(r"read as plain characters, \d+ tokens; --parse-special", said), arguments
