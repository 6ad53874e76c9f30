"""The commands: results on stdout, talk on stderr, errors without a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casestudy import cli
from casestudy.cli.printing import in_options
from tests.helpers import call


@pytest.fixture
def model(toy_folder: Callable[..., Path]) -> str:
    return str(toy_folder(n_positions=256))


def test_predict_json_has_the_documented_form(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    arguments = ("Go.", "--model", model, "--json", "-k", "3", "-a", " It", "-a", " the house")
    status, out, _ = call(capsys, "predict", *arguments)
    assert status == 0
    result = json.loads(out)
    assert result["prompt"] == "Go."
    assert result["tokens"] == ["<|endoftext|>", "Go", "."]
    assert [sorted(row) for row in result["top"]] == [["id", "logit", "prob", "token"]] * 3
    single, several = result["answers"]
    assert (single["tokens"], several["tokens"]) == ([" It"], [" the", " house"])
    assert single["rank"] is not None
    assert several["rank"] is None
    assert 0 < several["prob"] < 1


def test_predict_shows_spaces_and_newlines(capsys: pytest.CaptureFixture[str], model: str) -> None:
    status, out, err = call(capsys, "predict", "a b\nc", "--model", model)
    assert (status, err) == (0, "")
    assert "·b" in out
    assert "↵" in out


def test_how_texts_were_read_is_said_once_a_kind(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    prompt = "It was late.<|endoftext|> hello wor"
    status, out, err = call(capsys, "predict", prompt, "--model", model, "-a", "ld", "--json")
    assert status == 0
    json.loads(out)
    said = " ".join(err.split())
    assert said.count("holds the text of a special token") == 1
    assert said.count("as one text changes the prompt's own tokens") == 1


def test_strict_tokens_refuse_what_is_said_otherwise(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    asked = ("predict", "hello wor", "--model", model, "--strict-tokens", "-a")
    status, out, err = call(capsys, *asked, "ld")
    assert (status, out) == (2, "")
    assert "as one text changes the prompt's own tokens" in " ".join(err.split())
    assert call(capsys, *asked, " He")[0] == 0


def test_a_run_reads_its_prompts_for_notices_once_and_says_them(
    capsys: pytest.CaptureFixture[str],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from casestudy.behaviour import notices
    from casestudy.study import manifest

    calls: list[object] = []

    def counted(*given: object) -> tuple[str, ...]:
        calls.append(given)
        return real(*given)  # type: ignore[arg-type]

    real = notices.prompt_notices
    for module in (notices, manifest):
        monkeypatch.setattr(module, "prompt_notices", counted)
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"text": "Go.<|endoftext|> Yes.", "answer": " He"}) + "\n")
    arguments = (str(file), "--model", model, "--out", str(tmp_path / "s"), "--only", "predictions")
    _, _, err = call(capsys, "run", *arguments)
    assert len(calls) == 1
    assert " ".join(err.split()).count("holds the text of a special token") == 1


@pytest.mark.slow
def test_run_keeps_a_study_and_writes_its_report(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    arguments = ("full-stop-capitals", "--model", model, "--out", str(folder))
    status, out, err = call(capsys, "run", *arguments)
    assert status == 0, err
    assert "mean logit difference" in out
    assert str(folder / "report.html") in out.replace("\n", "")
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")

    (folder / "report.html").unlink()
    status, out, _ = call(capsys, "report", str(folder))
    assert status == 0
    assert (folder / "report.html").is_file()

    status, out, _ = call(capsys, "run", *arguments, "--json")
    again = json.loads(out)
    assert again["n"] > 10
    assert again["largest_gap"] <= again["bound"]


def test_run_measures_what_only_and_skip_leave(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    from casestudy.cli.options import read_stages
    from casestudy.study.chosen import NAMES

    assert read_stages(None, None) == list(NAMES)
    assert read_stages(["lens,ledger", "predictions"], ["lens"]) == ["predictions", "ledger"]
    assert read_stages(None, ["patching", "circuit"]) == list(NAMES[:-2])

    folder = tmp_path / "study"
    options = ("--model", model, "--out", str(folder), "--only", "class_mass,predictions")
    status, out, err = call(capsys, "run", *options, "--skip", "class_mass", "--json")
    assert status == 0, err
    assert json.loads((folder / "manifest.json").read_text())["measurements"] == ["predictions"]
    result = json.loads(out)
    assert result["n"] > 10
    assert "without_b_U" not in result, "what was not measured is absent"


def test_patch_json_has_every_cell_with_its_share_and_effect(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    pair = ("It was late. She went home.", "it was late. She went home.")
    page = tmp_path / "figure.html"
    options = ("--model", model, "-a", " He", "-c", " he", "--figure", str(page), "--json")
    status, out, err = call(capsys, "patch", *pair, *options)
    assert status == 0, err
    result = json.loads(out)
    first = [c for c in result["cells"] if c["pos"].startswith("1:")]
    assert len(first) == 2, "one per layer"
    for cell in result["cells"]:
        whole = result["other"] - result["unpatched"]
        assert cell["effect"] == pytest.approx(cell["value"] * whole, abs=1e-4)
    # patched before anything is computed, the first word is the whole difference
    assert first[0]["value"] == pytest.approx(1, abs=1e-4)
    assert result["error"]["gap"] <= result["error"]["bound"]
    assert "<script src" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("patch", "Go.", "Go."), "the edit changes nothing"),
        (("patch", "Go.", "go.", "--by", "feel"), "by 'feel'. Allowed: position, role"),
        (("patch", "Go.", "go.", "--memory", "lots"), "--memory lots. Allowed: a size like"),
        (("predict", "", "--no-bos"), "PromptError: prompt 0 is empty"),
        (("predict", "Go.", "--dtype", "int4"), "ModelError: dtype 'int4'. Allowed: float32"),
        (("predict", "Go.", "--device", "abacus"), "ModelError: device 'abacus'"),
        (("predict", "Go.", "--answer", ""), "TokenError: the answer is empty"),
        (("run", "full-stop-capitols"), "Did you mean 'full-stop-capitals'?"),
        (
            ("run", "--only", "legder"),
            "is called legder. Allowed: predictions, class_mass",
        ),
        (("run", "--only", ""), "--only names no measurement. Allowed: predictions, class_mass"),
        (("run", "--skip", ","), "--skip names no measurement"),
        (("compare", "ioi", "--only", ""), "--only names no measurement"),
        (("circuit", "--steps", "1000000"), "1,000,000 steps. Allowed: 1 to 1,000."),
        (("run", "--skip", "Circuit"), "Did you mean 'circuit'?"),
        (
            ("run", "--only", "lens", "--skip", "lens"),
            "nothing is left to measure. Allowed: pre",
        ),
        (("report", "nowhere"), "StudyError: nowhere holds no study"),
    ],
)
def test_errors_are_for_the_one_who_caused_them(
    capsys: pytest.CaptureFixture[str], model: str, arguments: tuple[str, ...], says: str
) -> None:
    if arguments[0] != "report":
        arguments = (*arguments, "--model", model)
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert says in " ".join(err.split())
    assert "Traceback" not in err


def test_help_answers_without_torch() -> None:
    code = "import sys; sys.argv = ['casestudy', '--help']\n"
    code += "from casestudy import cli\n"
    code += "try:\n    cli.main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy'} & set(sys.modules), 'torch or numpy was loaded'\n"
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_leaves_half_of_a_narrow_terminal_to_the_explanations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in cli.COMMANDS:
        status, out, _ = call(capsys, command.__name__, "--help")
        assert status == 0
        lines = out.splitlines()
        assert max(map(len, lines)) <= 80
        options = lines[next(i for i, line in enumerate(lines) if " Options " in line) :]
        (help_line,) = (line for line in options if "--help" in line)
        assert help_line.index("Show") <= 52, command


def test_control_characters_are_shown_not_sent(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    status, out, err = call(capsys, "predict", "a\t\x1b[31m", "--model", model)
    assert (status, err) == (0, "")
    shown = out.replace(" ", "")
    assert "\x1b" not in out
    assert "⇥" in shown
    assert "␛" in shown


def test_patch_names_what_it_weighs_and_gives_no_share_of_nothing(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    pair = ("It was late. She went home.", "it was late. She went home.", "--model", model)
    status, out, err = call(capsys, "patch", *pair, "-a", " He", "-c", " he", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["answer"]["token"], found["counterpart"]["token"]) == (" He", " he")
    assert found["unpatched_run"] == "corrupted"
    assert (found["corrupted"], found["clean"]) == (found["unpatched"], found["other"])
    near = abs(found["clean"] - found["corrupted"]) < 0.05 * max(
        abs(found["clean"]), abs(found["corrupted"])
    )
    assert near == (found["warning"] is not None) == (found["cells"][0]["value"] is None)
    assert found["scoring"] is None, "single tokens"


def test_patch_says_how_the_tokens_of_longer_answers_count(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    pair = ("It was late. She went home.", "it was late. She went home.", "--model", model)
    answers = ("-a", " He was", "-c", " it", "--site", "mlp_out", "--by", "role")
    for scoring, words in (
        ("sum", ", log-probability difference clean"),
        ("mean", ", difference of the mean log-probability per token clean"),
        ("first", ", logit difference of the first tokens that differ clean"),
    ):
        status, out, err = call(capsys, "patch", *pair, *answers, "--scoring", scoring)
        assert status == 0, err
        assert words in " ".join(out.split())
        assert "last token" in out, "a role is shown as --role takes it"
    status, out, err = call(capsys, "patch", *pair, *answers, "--scoring", "mean", "--json")
    assert status == 0, err
    assert json.loads(out)["scoring"] == "mean"


def test_a_target_that_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    pair = ("It was late.", "it was late.", "--model", model, "-a", " He", "-c", " he")
    target = str(tmp_path / "file" / "figure.html")
    status, out, err = call(capsys, "patch", *pair, "--figure", target)
    assert (status, out) == (2, "")  # before anything is computed
    assert "cannot be written: Not a directory. Choose another --figure" in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        (("run", "ioi"), ""),
        (("circuit", "ioi"), ""),
        (("circuit", "ioi", "--grain", "neuron"), ""),
        (("compare", "ioi", "--model", "tiny"), ""),
        (("new", "It was late.", "-a", " He", "-c", " he"), ".toml"),
        (("mine", "TEXT"), ".jsonl"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_no_command_writes_through_a_file(
    capsys: pytest.CaptureFixture[str],
    model: str,
    tmp_path: Path,
    command: tuple[str, ...],
    suffix: str,
) -> None:
    text = tmp_path / "file"
    text.write_text("It was late. He went home. " * 20)
    words = [str(text) if word == "TEXT" else word for word in command]
    target = str(text / "x") + suffix
    status, out, err = call(capsys, *words, "--model", model, "--out", target)
    said = " ".join(err.split())
    assert (status, out) == (2, "")
    assert "file/x" in "".join(err.split())
    assert "Not a directory" in said
    assert "Traceback" not in err


def test_ctrl_c_says_what_is_kept_and_what_continues(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str, tmp_path: Path
) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("casestudy.study.study.study", stopped)
    arguments = ("run", "full-stop-capitals", "--model", model, "--out", str(tmp_path / "a b"))
    status, _, err = call(capsys, *arguments)
    assert status == 130
    said = "".join(err.split())
    assert "Everyfinishedstepiskept" in said
    assert f"casestudyrunfull-stop-capitals--model{model}--out" in said


def test_python_m_casestudy_is_the_command_line() -> None:
    command = [sys.executable, "-m", "casestudy", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "explain" in done.stdout


@pytest.mark.parametrize(
    ("said", "reads"),
    [
        ("Give one with corrupted=.", "Give one with --corrupted."),
        ("Allowed: prepend_bos=False.", "Allowed: --no-bos."),
        ("by='role', which aligns; or by='last'", "--by role, which aligns; or --by last"),
        ("Use float32 (dtype='float32'): it", "Use float32 (--dtype float32): it"),
        ("n = 3, k=4 and f'x=' stay", "n = 3, k=4 and f'x=' stay"),
    ],
)
def test_messages_name_options_where_the_library_names_arguments(said: str, reads: str) -> None:
    assert in_options(said) == reads


def test_an_explanation_without_a_partner_names_the_option(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    arguments = ("explain", "Go", "--model", model, "-a", " He", "-c", " he")
    for more in ((), ("--json",)):
        status, out, err = call(capsys, *arguments, *more)
        assert status == 0, err
        said = " ".join((out + err).split())
        assert "Give one with --corrupted." in said
        assert "corrupted=" not in said


def test_special_tokens_are_parsed_on_request(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    arguments = ("predict", "It was<|endoftext|>", "--model", model, "--json", "--parse-special")
    status, out, err = call(capsys, *arguments)
    assert (status, err) == (0, "")
    assert json.loads(out)["ids"][-1] == 8191


def test_a_study_continues_however_its_model_is_spelled(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    for spelling in (model, model + "/"):
        arguments = ("--model", spelling, "--out", str(tmp_path / "s"), "--only", "predictions")
        status, _, err = call(capsys, "run", *arguments, "--json")
        assert status == 0, err


def test_prompts_left_out_are_counted_by_kind_and_none_left_is_a_failure(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    # an answer of several tokens without a counterpart cannot be compared
    rows = [("Go.", " He", " he"), ("Stay.", " he slept", ""), ("Run.", " he went", "")]
    file = tmp_path / "some.csv"
    options = ("--model", model, "--only", "predictions,ledger,lens", "--json")
    for name, kept, expected in (("one", rows, 0), ("none", rows[1:], 1)):
        lines = [",".join(row) for row in kept]
        file.write_text("\n".join(["text,answer,counterpart", *lines]) + "\n")
        status, _, err = call(capsys, "run", str(file), *options, "--out", str(tmp_path / name))
        said = " ".join(err.split())
        assert status == expected, err
        assert f"2 of {len(kept)} prompts left out" in said or said.count("prompts left out") == 2
    assert "No prompt has an answer that could be measured" in said


def test_partners_that_cannot_be_used_are_named_where_others_replace_them(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    file = tmp_path / "same.csv"
    texts = ("It was late.", "She went home.")
    rows = [f"{text},{text}, He, he" for text in texts]
    file.write_text("\n".join(["text,corrupted,answer,counterpart", *rows]) + "\n")
    options = ("--model", model, "--only", "predictions,patching", "--out", str(tmp_path / "s"))
    status, out, err = call(capsys, "run", str(file), *options)
    assert status == 0, err
    said = " ".join(out.split())
    assert "Your corrupted prompts were not used: too few can be used: 0 of 2 (the edit" in said
    assert said.index("were not used") < said.index("are edits of the kind")


def test_patch_shows_one_role_and_names_those_there_are(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    pair = ("patch", "It was late. She", "it was late. She", "-a", " He", "-c", " he")
    status, out, err = call(
        capsys, *pair, "--model", model, "--role", "last token", "--readout", "-2", "--json"
    )
    assert status == 0, err
    assert {cell["role"] for cell in json.loads(out)["cells"]} == {"last token"}
    status, out, err = call(capsys, *pair, "--model", model, "--role", "lost token")
    assert (status, out) == (2, "")
    assert "Did you mean 'last token'" in " ".join(err.split())
    assert call(capsys, *pair, "--model", model, "--role", "BOS", "--by", "all")[0] == 2


def test_explain_and_predict_read_where_they_are_told(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    whole, cut = "It was late. She went home.", "It was late."
    for command in (("predict", "-a", " He was"), ("explain", "-a", " He", "-c", " he")):
        name, *options = command
        at = call(capsys, name, whole, *options, "--model", model, "--readout", "4", "--json")
        plain = call(capsys, name, cut, *options, "--model", model, "--json")
        found, expected = (json.loads(out) for _, out, _ in (at, plain))
        for key in ("tokens", "ids", "top", "answers", "contrast", "ledger", "parts"):
            assert found.get(key) == expected.get(key), key
        assert found["text"] == whole
        status, out, err = call(capsys, name, whole, "--model", model, "--readout", "early")
        assert (status, out) == (2, "")
        assert "'early' is no role" in " ".join(err.split())


def test_generate_writes_a_page_and_a_behaviour_that_runs(
    capsys: pytest.CaptureFixture[str], model: str, tmp_path: Path
) -> None:
    arguments = ("It was late.", "--n", "4", "--temperature", "2", "--seed", "3", "--model", model)
    out = tmp_path / "written"
    status, text, err = call(capsys, "generate", *arguments, "--out", str(out), "--json")
    assert status == 0, err
    found = json.loads(text)
    assert found["page"] == str(out / "generated.html")
    steps = [token["logit_difference"] for token in found["tokens"]]
    sums = [sum(row["value"] for row in token["ledger"]) for token in found["tokens"]]
    assert sums == pytest.approx(steps, abs=1e-4)
    study = ("run", found["behaviour"], "--only", "predictions", "--out", str(tmp_path / "s"))
    status, text, _ = call(capsys, *study, "--model", model, "--json")
    assert status == 0
    assert json.loads(text)["logit_difference"] == pytest.approx(sum(steps) / 4, abs=1e-4)


def test_generate_prints_the_text_and_with_explain_the_strongest_terms(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    arguments = ("generate", "It was late.", "--n", "3", "--model", model)
    status, plain, _ = call(capsys, *arguments)
    assert status == 0
    assert "3 tokens, each against its runner-up" in plain
    assert "mlp" not in plain
    status, explained, err = call(capsys, *arguments, "--explain")
    assert status == 0
    assert explained.splitlines()[0] == plain.splitlines()[0]
    assert "mlp" in explained
    assert "largest gap of the ledgers" in err
    status, _, err = call(capsys, *arguments, "--stop", " the house")
    assert status == 2
    assert "is 2 tokens" in " ".join(err.split())
