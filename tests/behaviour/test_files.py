"""A behaviour written down and read again is the same; what is wrong in a file is named."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casestudy.behaviour.classes import CAPITAL_MASS, STANDARD, ClassContrast, ClassSet, TokenClass
from casestudy.behaviour.files import (
    SETTINGS,
    find_behaviour,
    load_behaviour,
)
from casestudy.behaviour.files_written import write_behaviour
from casestudy.behaviour.presets import preset, preset_names
from casestudy.behaviour.prompts import QUESTION, Behaviour, Prompt, Role
from casestudy.cli.options import read_behaviour
from casestudy.errors import BehaviourError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
# Entries, not prompts: a strategy may not construct what beartype checks, which draws at random.
ENTRIES = st.fixed_dictionaries(
    {"text": TEXT},
    optional={
        "answer": TEXT.map("a".__add__),
        "counterpart": TEXT.map("b".__add__),
        "corrupted": TEXT,
        "groups": st.lists(TEXT, max_size=2).map(tuple),
        "document": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "roles": st.dictionaries(
            TEXT, st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(tuple), max_size=2
        ),
        "category": st.sampled_from(["", "initial"]),
        "next_token": st.sampled_from([None, " The", "\n", ""]),
    },
)
ROWS = st.lists(ENTRIES, min_size=1, max_size=4)


def prompts_of(rows: list[dict]) -> tuple[Prompt, ...]:
    prompts: list[Prompt] = []
    for prompt in (Prompt(**row) for row in rows):
        if prompt not in prompts:
            prompts.append(prompt)
    return tuple(prompts)


PLAIN = Behaviour("b", QUESTION, (Prompt("Go."),), class_contrast=CAPITAL_MASS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ROWS,
    TEXT,
    st.sampled_from([
        {}, {"about": "é\x7f\"\\"}, {"class_contrast": None},
        {"classes": STANDARD.extend(TokenClass("he", " he", required=False))},
        {"classes": ClassSet("s", (TokenClass("a", "a"), TokenClass("b", "b")), None, "rest"),
         "class_contrast": ClassContrast("ab", "a", "b"), "answers": "classes"},
        {"roles": (Role("o", r"(?P<role>o)\b", which="not last", take="first"),)},
    ]),
)  # fmt: skip
def test_round_trip(tmp_path: Path, rows: list[dict], name: str, more: dict) -> None:
    behaviour = replace(PLAIN, name=name, prompts=prompts_of(rows), **more)
    for suffix in (".toml", ".jsonl"):
        path = tmp_path / f"b{suffix}"
        write_behaviour(behaviour, path)
        again = load_behaviour(path)
        assert again == behaviour
        assert again.notes == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_a_csv_file_holds_the_prompts_or_says_what_it_cannot(
    tmp_path: Path, rows: list[dict]
) -> None:
    path = tmp_path / "b.csv"
    path.unlink(missing_ok=True)
    prompts = prompts_of(rows)
    both = all(p.answer is not None and p.counterpart is not None for p in prompts)
    rule = {"answers": "given", "class_contrast": None} if both else {}
    behaviour = replace(PLAIN, prompts=prompts, **rule)
    if any(
        not p.text.strip()
        or p.next_token == ""
        or any(isinstance(v, str) and "\r" in v for v in vars(p).values())
        or any(g != g.strip() or ";" in g for g in p.groups)
        for p in prompts
    ):
        with pytest.raises(BehaviourError, match="cannot hold"):
            write_behaviour(behaviour, path)
        assert not path.exists()
    else:
        write_behaviour(behaviour, path)
        assert load_behaviour(path) == behaviour


@pytest.mark.parametrize("name", preset_names())
def test_presets_can_be_written_down(tmp_path: Path, name: str) -> None:
    for suffix in (".toml", ".jsonl"):
        path = tmp_path / f"b{suffix}"
        write_behaviour(preset(name), path)
        assert load_behaviour(path) == preset(name)


def read(tmp_path: Path, name: str, text: str | bytes) -> Behaviour:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_behaviour(path)


def test_the_three_forms_say_the_same(tmp_path: Path) -> None:
    toml = read(tmp_path, "b.toml", """
        [[prompts]]
        text = "Go."
        groups = "short"
        roles = {verb = 1}
        [[prompts]]
        text = 'He said "a, b".'
        """)  # fmt: skip
    jsonl = read(tmp_path, "b.jsonl",
        '{"text": "Go.", "groups": ["short"], "roles": {"verb": [1]}}\n'
        '{"text": "He said \\"a, b\\".", "answer": null}\n')  # fmt: skip
    csv = read(tmp_path, "b.csv",
        'text,groups,role:verb\r\nGo.,short,1\r\n"He said ""a, b"".",,\r\n')  # fmt: skip
    assert toml == jsonl == csv
    assert csv.name == "b"
    assert csv.prompts[0] == Prompt("Go.", groups=("short",), roles={"verb": (1,)})
    assert csv.class_contrast == CAPITAL_MASS


def test_what_a_file_need_not_say_follows_from_its_prompts(tmp_path: Path) -> None:
    given_ = read(tmp_path, "b.csv", "text,answer,counterpart\nGo., He, he\n")
    assert (given_.answers, given_.class_contrast) == ("given", None)
    classes = read(tmp_path, "b.csv", "text,answer_class,counterpart_class\n17,[5-9],[0-4]\n")
    assert (classes.answers, classes.has_classes) == ("classes", True)
    own = read(tmp_path, "b.toml", """
        class_contrast = {name = "runes", answer = "rune", counterpart = "Capital"}
        prompts = [{text = "Go."}]
        [classes]
        extends = "standard"
        patterns = [{name = "rune", pattern = '\\p{Runic}', required = false}]
        """)  # fmt: skip
    assert own.classes.names[:2] == ("rune", "space+Capital")
    assert own.class_contrast == ClassContrast("runes", "rune", "Capital")


def test_blank_and_repeated_rows_are_counted(tmp_path: Path) -> None:
    rows = [
        '{"text": "Go."}',
        "",
        '{"text": "Stay."}',
        '{"text": "Go."}',
        "  ",
        "{}",
        '{"text": "Go.", "category": "x"}',
    ]
    jsonl = read(tmp_path, "b.jsonl", "\n".join(rows) + "\n")
    csv = read(tmp_path, "b.csv", "text,category\nGo.,\n\nStay.,\nGo.,\n , \n,\nGo.,x\n")
    toml = read(tmp_path, "b.toml", "".join(
        f"[[prompts]]\n{row}\n" for row in
        ('text="Go."', "", 'text="Stay."', 'text="Go."', "", "", 'text="Go."\ncategory="x"')
    ))  # fmt: skip
    for behaviour in (jsonl, csv, toml):
        assert [p.text for p in behaviour.prompts] == ["Go.", "Stay.", "Go."]
        assert behaviour.notes[0].startswith("3 blank rows skipped")
        assert behaviour.notes[1].startswith("1 rows repeat an earlier one exactly")
    assert jsonl.notes[0].endswith("(line 2, line 5, line 6)")
    assert csv.notes[1].endswith("(line 5)")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.jsonl", '{"text": "Go.", "anser": " He"}', "line 1 has the key 'anser'.*mean 'answer'"),
        ("b.jsonl", '{"text": "Go."}\n{"text": ', "line 2 is not JSON"),
        ("b.jsonl", '{"text": "Go."}\n\n["Go."]', "line 3 is not a JSON object"),
        ("b.jsonl", '{"behaviour": {"nme": "x"}}\n{"text": "Go."}', "setting 'nme'.*mean 'name'"),
        ("b.jsonl", '{"answer": " He"}', "line 1 has no text"),
        ("b.jsonl", '{"text": 3}', "text is 3. Allowed: text"),
        ("b.jsonl", '{"text": "a\\ud800"}', "line 1: text holds a lone surrogate at character 1"),
        ("b.jsonl", '{"text": "a", "roles": {"x": ["1"]}}', "role 'x' is at"),
        ("b.jsonl", '{"text": "a", "roles": {"x": true}}', "role 'x' is at"),
        ("b.jsonl", '{"text": "a", "roles": {"x": []}}', "has no position"),
        ("b.jsonl", '{"text": "a", "answer_class": "x"}', "line 1: .*one class pattern"),
        ("b.jsonl", '{"text": "a", "answer": " He", "counterpart": " He"}', "line 1: .*both ' He'"),
        ("b.jsonl", "", "b.jsonl: .*has no prompts"),
        ("b.csv", "txt\nGo.\n", "column 'txt'.*mean 'text'"),
        ("b.csv", "text,text\nGo.,Go.\n", "'text' occurs twice"),
        ("b.csv", "text,roles\nGo.,1\n", "column 'roles'. Allowed: a column role:NAME"),
        ("b.csv", "text,role:x\nGo.,one\n", "line 2 has 'one' in column 'role:x'"),
        ("b.csv", "text,answer\nGo., He\nStay.\n", "line 3 has 1 cells. Allowed: 2"),
        ("b.csv", 'text\nGo.\n"Stay.\n', "the row that starts on line 3 is not CSV"),
        ("b.toml", "x = ", "it is not TOML"),
        ("b.toml", "prompts = 3", "`prompts` is not a list"),
        ("b.toml", 'answer = "given"', "setting 'answer'"),
        ("b.toml", 'answers = "best"\nprompts = [{text = "a"}]', "answers is 'best'. Allowed"),
        ("b.toml", 'answers = "given"\nprompts = [{text = "a"}]', "lacks its answer"),
        ("b.toml", 'main = ["x"]\nprompts = [{text = "a"}]', "main group 'x'"),
        ("b.toml", 'classes = "ascii"\nprompts = [{text = "a"}]', "no class set is called 'ascii'"),
        ("b.toml",
         'classes = {patterns = [{name = "x", pattern = "(("}]}\nprompts = [{text = "a"}]',
         "of class 'x' does not compile"),
        ("b.toml", 'classes = {pattern = []}\nprompts = [{text = "a"}]', "classes has the key"),
        ("b.toml", 'roles = [{name = "x"}]\nprompts = [{text = "a"}]', "roles lacks 'pattern'"),
        ("b.toml", 'roles = [{name = "x", pattern = "a", take = "some"}]\nprompts = [{text = "a"}]',
         "take of role 'x' is 'some'"),
        ("b.toml", 'roles = [{name = "x", pattern = "(("}]\nprompts = [{text = "a"}]',
         "role 'x' does not compile"),
        ("b.toml", 'class_contrast = "x"\nprompts = [{text = "a"}]', "'x' is not a table"),
        ("b.toml", 'class_contrast = {name = "x", answer = "a", counterpart = "b"}\n'
         'prompts = [{text = "a"}]', "has no class 'a'"),
        ("b.csv", b"text\nGo.\nCaf\xe9.\n", "line 3 is not UTF-8: byte 0xe9"),
        ("b.csv", "text\nGo.\n".encode("utf-16"), "it is UTF-16"),
        ("b.csv", b"\xef\xbb\xbftext\nGo.\n\xff\n", "line 3 is not UTF-8: byte 0xff at byte 12"),
        ("b.txt", "Go.", "not a behaviour file. Allowed: .toml, .jsonl, .csv"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(BehaviourError, match=message):
        read(tmp_path, name, text)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name, text in (("b.csv", "text\nGo.\n"), ("b.jsonl", '{"text": "Go."}')):
        assert read(tmp_path, name, text.encode("utf-8-sig")).prompts == (Prompt("Go."),)


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BehaviourError, match=r"none\.toml: it cannot be read: No such file"):
        load_behaviour(tmp_path / "none.toml")
    with pytest.raises(BehaviourError, match="cannot be written: No such file"):
        write_behaviour(PLAIN, tmp_path / "none" / "b.toml")
    with pytest.raises(BehaviourError, match="not a behaviour file"):
        write_behaviour(PLAIN, tmp_path / "b.txt")
    with pytest.raises(BehaviourError, match="lone surrogate"):
        write_behaviour(replace(PLAIN, prompts=(Prompt("\ud800"),)), tmp_path / "b.toml")
    with pytest.raises(BehaviourError, match="cannot hold name, about"):
        write_behaviour(replace(PLAIN, name="other", about="x"), tmp_path / "b.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_read_in_seconds(tmp_path: Path) -> None:
    n = 100_000
    lines = (json.dumps({"text": f"Sentence {i}.", "category": "x"}) for i in range(n))
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    timed = (
        "import sys, time; from casestudy.behaviour.files import load_behaviour\n"
        "start = time.process_time(); n = len(load_behaviour(sys.argv[1]))\n"
        "print(n, time.process_time() - start)"
    )
    # in a process of its own, where annotated types are not checked, as users have it
    command = [sys.executable, "-c", timed, str(tmp_path / "b.jsonl")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) == n
    assert float(said[1]) < 10  # about 1 s


def test_a_name_is_a_preset_and_a_path_is_a_file(tmp_path: Path) -> None:
    assert find_behaviour("ioi").name == "ioi"
    write_behaviour(PLAIN, tmp_path / "b.csv")
    assert find_behaviour(str(tmp_path / "b.csv")) == PLAIN
    with pytest.raises(BehaviourError, match="cannot be read"):
        find_behaviour("mine.jsonl")
    with pytest.raises(BehaviourError, match="no preset is called 'mine'"):
        find_behaviour("mine")


def test_the_command_line_says_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.csv").write_text("text\nGo.\nGo.\n\nStay.\n")
    assert len(read_behaviour(str(tmp_path / "b.csv"))) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "1 blank rows skipped (line 4)" in said
    assert "1 rows repeat an earlier one exactly and were left out (line 3)" in said


DOCS = (Path(__file__).parents[2] / "docs" / "behaviour-files.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("form", "suffix", "n"), [("toml", ".toml", 2), ("json", ".jsonl", 2), ("csv", ".csv", 2)]
)
def test_the_documented_examples_are_well_formed(
    tmp_path: Path, form: str, suffix: str, n: int
) -> None:
    (text,) = re.findall(rf"```{form}\n(.*?)```", DOCS, flags=re.DOTALL)
    behaviour = read(tmp_path, f"example{suffix}", text)
    assert len(behaviour) == n
    assert behaviour.notes == ()


def test_every_key_is_documented() -> None:
    documented = set(re.findall(r"^\| (.*?) \|", DOCS, flags=re.MULTILINE))
    keys = {key for cell in documented for key in re.findall(r"`(\w+)`", cell)}
    assert keys - {"assistant_prefix", "template", "variables", "role", "content"} == {
        *(f.name for f in fields(Prompt)),
        *SETTINGS,
        "messages",
    }


def test_a_line_end_is_a_newline_in_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text\r\n"One.\r\nTwo."\r\n"Three.\rFour."\r\n')
    (tmp_path / "a.toml").write_bytes(b'[[prompts]]\r\ntext = """One.\r\nTwo."""\r\n')
    csv, toml = load_behaviour(tmp_path / "a.csv"), load_behaviour(tmp_path / "a.toml")
    assert csv.prompts[0] == toml.prompts[0] == Prompt("One.\nTwo.")
    assert csv.prompts[1].text == "Three.\nFour."
    assert csv.notes == ("line ends in 2 rows read as newlines (line 2, line 4)",)
    with pytest.raises(BehaviourError, match="a carriage return"):
        write_behaviour(Behaviour("a", "?", (Prompt("One.\rTwo."),)), tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("header", "row"),
    [
        *(({key: None}, {}) for key in SETTINGS),
        ({"classes": {"extends": None, "patterns": None, "end_of_text": None, "name": None}}, {}),
        ({"classes": {"extends": "standard", "name": None}}, {}),
        ({"roles": [{"name": "o", "pattern": "o", "which": None, "take": None}]}, {}),
        *(({}, {f.name: None}) for f in fields(Prompt) if f.name != "text"),
        ({}, {"roles": {"verb": None}}),
        (None, {}),
    ],
)
def test_null_means_absent_for_every_key(tmp_path: Path, header: dict | None, row: dict) -> None:
    def without(value: object) -> object:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if v is not None}
        return [without(v) for v in value] if isinstance(value, list) else value

    def written(head: object, first: dict) -> str:
        rows = ({"behaviour": head}, {"text": "Go."} | first, {"text": "Stay."})
        return "\n".join(map(json.dumps, rows))

    try:
        absent = read(tmp_path, "b.jsonl", written(without(header) or {}, without(row)))
    except BehaviourError as error:  # the same error, then
        with pytest.raises(BehaviourError, match=re.escape(str(error))):
            read(tmp_path, "b.jsonl", written(header, row))
    else:
        assert read(tmp_path, "b.jsonl", written(header, row)) == absent


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"text": "Go.", "groups": [null]}', "groups"),
        ('{"behaviour": {"main": [null]}}\n{"text": "Go."}', "main"),
        ('{"behaviour": {"roles": [null]}}\n{"text": "Go."}', "roles"),
        ('{"behaviour": {"classes": {"patterns": [null]}}}\n{"text": "Go."}', "classes.patterns"),
        ('{"text": "Go.", "anser": null}', "anser"),
        ('{"text": "Go.", "roles": {"verb": [null]}}', "verb"),
        ('{"text": null, "answer": " He"}', "text"),
        ('{"behaviour": {"parse_special": "yes"}}\n{"text": "Go."}', "parse_special"),
    ],
)
def test_a_null_where_none_may_be_is_named(tmp_path: Path, line: str, key: str) -> None:
    with pytest.raises(BehaviourError, match=re.escape(key)):
        read(tmp_path, "b.jsonl", line)


def test_an_empty_text_is_bos_alone_where_a_file_can_write_it(tmp_path: Path) -> None:
    toml = read(tmp_path, "b.toml", '[[prompts]]\ntext = ""\n[[prompts]]\ntext = "Go."\n')
    jsonl = read(tmp_path, "b.jsonl", '{"text": ""}\n{"text": "Go."}\n')
    assert toml == jsonl
    assert toml.prompts == (Prompt(""), Prompt("Go."))
    assert toml.notes == ()
    with pytest.raises(BehaviourError, match=r'BOS alone, write text = ""'):
        read(tmp_path, "b.csv", "text,answer\n, He\n")
    with pytest.raises(BehaviourError, match="cannot hold"):
        write_behaviour(toml, tmp_path / "c.csv")


def test_special_tokens_are_asked_for_and_written_down(tmp_path: Path) -> None:
    asked = read(tmp_path, "b.toml", 'parse_special = true\n[[prompts]]\ntext = "Go."\n')
    assert asked.parse_special
    for suffix in (".toml", ".jsonl"):
        write_behaviour(asked, tmp_path / f"c{suffix}")
        assert load_behaviour(tmp_path / f"c{suffix}") == replace(asked, name="b")
    with pytest.raises(BehaviourError, match=r"cannot hold .*parse_special"):
        write_behaviour(asked, tmp_path / "b.csv")
