"""A mined context is what the text says: its tokens, its kind of stop, and what follows."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudy.behaviour import corpus, mining
from casestudy.behaviour.files import load_behaviour
from casestudy.behaviour.files_written import write_behaviour
from casestudy.behaviour.full_stops import INSIDE, classify
from casestudy.behaviour.mining import _Candidate, _Sample, mine
from casestudy.errors import BehaviourError
from casestudy.model.loading import BUNDLED
from casestudy.model.tokens import Tokenizer

SENTENCES = (
    "The dog ran home. ",
    "It was late, and nobody spoke. ",
    "Mr. Brown met J. K. Rowling in the street. ",
    "The height was 3.14 metres. ",
    "She wrote to www.example.org about main.py yesterday. ",
    "They waited... and waited. ",
    "The rain fell, e.g. in March. ",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(BUNDLED / "tiny", prepend_bos=True, n_ctx=256)


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def prose(paragraphs: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    lines = []
    for i in range(paragraphs):
        picked = [rng.choice(SENTENCES) for _ in range(rng.randint(1, 6))]
        lines.append(f"Paragraph {i} begins here. " + "".join(picked).strip())
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("She left§ He stayed.", "sentence end"),
        ("It is number 7§ Then we went.", "sentence end"),
        ("“Go away”, she said§ “Never.”", "sentence end"),
        ("So did I§ Then he left.", "sentence end"),
        ("Good morning, Mr§ Brown.", "abbreviation"),
        ("Good fruit, e§g. apples, is dear.", "abbreviation"),
        ("Good fruit, e.g§ apples, is dear.", "abbreviation"),
        ("The U§S. Navy came.", "abbreviation"),
        ("The U.S§ Navy came.", "abbreviation"),
        ("See p§ 5 for more.", "abbreviation"),
        ("He is at No§ 5 now.", "abbreviation"),
        ("He said no§ Then he left.", "sentence end"),
        ("By J§ K. Rowling, they say.", "initial"),
        ("By J. K§ Rowling, they say.", "initial"),
        ("By J§R.R. Tolkien.", "initial"),
        ("It costs 3§14 dollars.", "decimal point"),
        ("It costs §50 dollars.", "decimal point"),
        ("And then§.. nothing.", "ellipsis"),
        ("And then ..§ nothing.", "ellipsis"),
        ("And then § . . nothing.", "ellipsis"),
        ("Look at www§example.org now.", "URL or file name"),
        ("Look at https://a.example/b§html now.", "URL or file name"),
        ("Open main§py first.", "URL or file name"),
        ("(He had left§) She stayed.", "before a closing mark"),
        ("“He had left§” She stayed.", "before a closing mark"),
        ("That was all§", "end of paragraph"),
        ("That was all§  ", "end of paragraph"),
        ("approxim§ and so on", "other"),
        ("1§ First of all", "other"),
        ("No space§Then more", "other"),
    ],
)
def test_kinds_of_stop(text: str, kind: str) -> None:
    at = text.index("§")
    assert classify(text.replace("§", "."), at) == kind


def test_a_context_is_a_prefix_and_the_next_token_is_the_true_one(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = prose(60)
    found = mine([written(tmp_path / "a.txt", text)], tokenizer, n=500, sampling="natural")
    assert len(found.behaviour) > 50
    lines = text.split("\n")
    for prompt in found.behaviour.prompts:
        ids = tokenizer.ids(prompt.text)
        (line,) = {line for line in lines if line.startswith(prompt.text)}
        following = line[len(prompt.text) :] + "\nParagraph"
        assert prompt.text.endswith(".")
        assert tokenizer.ids(line + "\nParagraph")[: len(ids)] == ids
        if prompt.next_token is None:
            assert line == lines[-2], "nothing follows the last line"
            continue
        assert following.startswith(prompt.next_token)
        assert prompt.groups == (prompt.category,)
        assert prompt.document == "a.txt"


def test_every_stop_is_counted_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = prose(40) + 'He said "yes." And (then.) left...\n'
    found = mine([written(tmp_path / "a.txt", text)], tokenizer, n=10)
    assert sum(found.found.values()) == text.count(".")
    assert found.found[INSIDE] >= 2, '`."` and `.)` are one token each'
    assert found.found["decimal point"] == text.count("3.14")
    assert found.found["initial"] == 2 * text.count("J. K.")


def test_long_paragraphs_start_anew_with_a_sentence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "".join(f"Sentence number {i} is here. " for i in range(300))
    found = mine(
        [written(tmp_path / "a.txt", text)], tokenizer, n=1000, sampling="natural", max_tokens=40
    )
    assert sum(found.found.values()) == 300
    assert len(found.behaviour) + found.skipped.get("contexts longer than 40 tokens", 0) == 300
    assert len(found.behaviour) > 290
    for prompt in found.behaviour.prompts:
        assert prompt.text.startswith("Sentence")
        assert len(tokenizer.ids(prompt.text)) + 1 <= 40


def test_a_sentence_longer_than_a_context_is_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "word " * 200 + "end. Short one here. Another short one. " + "word " * 200 + "end."
    found = mine([written(tmp_path / "a.txt", text)], tokenizer, n=10, max_tokens=20)
    assert [p.text for p in found.behaviour.prompts] == [
        "Short one here.",
        "Another short one.",
    ]
    assert found.skipped == {"contexts longer than 20 tokens": 2}


def test_wrapped_lines_are_one_paragraph(tokenizer: Tokenizer, tmp_path: Path) -> None:
    line = "The quick brown fox jumps over the lazy dog and then it sleeps"
    text = "\n\n".join("\n".join([line] * 4 + ["until morning."]) for _ in range(5))
    found = mine([written(tmp_path / "a.txt", text)], tokenizer, n=10)
    (prompt,) = found.behaviour.prompts
    assert prompt.text == "\n".join([line] * 4 + ["until morning."])
    assert (prompt.category, prompt.next_token) == ("end of paragraph", "\n")
    assert found.skipped["contexts that repeat one of the sample"] == 4


def test_balanced_shares_evenly_and_natural_does_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", prose(300))
    balanced = mine([file], tokenizer, n=60)
    natural = mine([file], tokenizer, n=60, sampling="natural")
    kinds = [kind for kind, n in balanced.found.items() if n and kind != INSIDE]
    taken = [balanced.taken[kind] for kind in kinds]
    assert sum(taken) == len(balanced.behaviour)
    assert max(taken) - min(taken) <= 2
    assert natural.taken["sentence end"] > 2 * natural.taken["decimal point"]


@pytest.mark.parametrize("sampling", ["balanced", "natural"])
def test_the_sample_does_not_depend_on_the_order_of_files(
    tokenizer: Tokenizer, tmp_path: Path, sampling: Any
) -> None:
    files = [written(tmp_path / f"{i}.txt", prose(40, seed=i // 2)) for i in range(6)]
    one = mine(files, tokenizer, n=50, sampling=sampling)
    two = mine(files[::-1], tokenizer, n=50, sampling=sampling)
    other = mine(files, tokenizer, n=50, sampling=sampling, seed=1)
    assert one.behaviour.prompts == two.behaviour.prompts
    assert one.taken == two.taken
    assert {p.text for p in one.behaviour.prompts} != {p.text for p in other.behaviour.prompts}
    assert len({p.text for p in one.behaviour.prompts}) == len(one.behaviour), "no repetition"


def test_shards_are_disjoint_and_leave_nothing_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", prose(80))
    whole = mine([file], tokenizer, n=10_000, sampling="natural")
    parts = [mine([file], tokenizer, n=10_000, sampling="natural", shard=(i, 3)) for i in (1, 2, 3)]
    texts = [{p.text for p in part.behaviour.prompts} for part in parts]
    assert set.union(*texts) == {p.text for p in whole.behaviour.prompts}
    assert sum(sum(part.found.values()) for part in parts) == sum(whole.found.values())


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 12), st.randoms())
def test_the_sample_is_the_smallest_hashes_shared_evenly(
    priorities: list[int], n: int, rng: random.Random
) -> None:
    kinds = ("a", "b", "c")
    offers = [(kinds[p % 7 % 3], p) for p in priorities]
    expected = {kind: sorted({p for k, p in offers if k == kind}) for kind in kinds}
    sizes = dict.fromkeys(kinds, 0)
    while sum(sizes.values()) < n and any(sizes[k] < len(expected[k]) for k in kinds):
        open_kinds = [k for k in kinds if sizes[k] < len(expected[k])]
        sizes[min(open_kinds, key=lambda k: (sizes[k], kinds.index(k)))] += 1
    rng.shuffle(offers)
    sample = _Sample(n, kinds)
    for kind, p in offers:
        sample.offer(kind, _Candidate(str(p), [p], [], "d", (0, p), p), Always())
    kept = Counter(kind for kind, _ in sample.chosen())
    assert {k: kept[k] for k in kinds} == sizes
    for kind in kinds:
        got = sorted(c.priority for k, c in sample.chosen() if k == kind)
        assert got == expected[kind][: sizes[kind]]


class Always(mining._Cutter):
    def __init__(self) -> None:
        pass

    def same_alone(self, candidate: _Candidate) -> bool:
        return True


def test_jsonl_and_parquet_rows_are_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [f"The dog number {i} ran home. Then it slept." for i in range(20)]
    rows = [{"body": text, "document": f"d{i}"} for i, text in enumerate(texts)]
    lines = [json.dumps(row) for row in rows]
    lines[3:3] = ["", "{broken", '["a list"]', '{"body": 5}']
    jsonl = written(tmp_path / "a.jsonl", "\n".join(lines))
    pl.DataFrame(rows).write_parquet(tmp_path / "b.parquet")
    a = mine([jsonl], tokenizer, n=100, text_field="body")
    b = mine([tmp_path / "b.parquet"], tokenizer, n=100, text_field="body")
    assert a.skipped == {"JSON lines without a text in 'body'": 3}
    assert a.behaviour.prompts == b.behaviour.prompts
    assert {p.document for p in a.behaviour.prompts} == {f"d{i}" for i in range(20)}
    assert (a.documents, b.documents) == (20, 20)


def test_mined_prompts_are_a_behaviour_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = mine([written(tmp_path / "a.txt", prose(20))], tokenizer, n=20)
    write_behaviour(found.behaviour, tmp_path / "prompts.jsonl")
    assert load_behaviour(tmp_path / "prompts.jsonl") == found.behaviour


def test_one_line_of_50_MB_is_read_in_pieces(tmp_path: Path) -> None:
    sentence = b"The dog ran home over the hill and far away, as dogs do. "
    path = written(tmp_path / "line.txt", sentence * (50 * 10**6 // len(sentence) + 1))
    longest = total = 0
    for piece, _ in corpus.byte_lines(path, corpus.LONGEST_LINE, lambda n: None):
        longest, total = max(longest, len(piece)), total + len(piece)
        assert piece.startswith(b"The dog"), "a piece starts with a sentence"
    assert longest <= corpus.LONGEST_LINE
    assert total == path.stat().st_size > 50 * 10**6


def test_a_cut_line_is_one_paragraph(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 200)
    text = "".join(f"Dog number {i} ran home. " for i in range(100)).strip()
    found = mine([written(tmp_path / "a.txt", text)], tokenizer, n=1000, sampling="natural")
    assert found.found["end of paragraph"] == 1
    assert found.found["sentence end"] == 99
    assert found.skipped.keys() == {"lines cut for their length (the pieces are read)"}
    for prompt in found.behaviour.prompts:
        assert prompt.next_token in (" Dog", " D", None), "the next token comes from the next piece"


def test_pieces_of_a_line_join_to_it() -> None:
    for line in (b"a. b. c d" * 50, b"x" * 500, ("é" * 300).encode(), b""):
        pieces = [*corpus.pieces_of(line, 40)]
        assert b"".join(pieces) == line
        assert all(len(piece) <= 40 for piece in pieces)
        for piece in pieces:
            piece.decode()


def test_what_is_not_text_is_skipped_in_folders_and_refused_by_name(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    written(tmp_path / "good.txt", prose(5))
    binary = written(tmp_path / "image.png", b"\x89PNG\0\0\0" * 100)
    utf16 = written(tmp_path / "wide.txt", "A text. And more.".encode("utf-16"))
    mixed = written(tmp_path / "mixed.txt", b"One good line here.\nCaf\xe9 is bad.\nTwo of them.\n")
    marked = written(tmp_path / "bom.txt", b"\xef\xbb\xbfMarked at its start. Yes.\n")
    found = mine([tmp_path], tokenizer, n=100)
    assert found.skipped["files that are not text"] == 2
    assert found.skipped["lines that are not UTF-8"] == 1
    texts = {p.text for p in mine([mixed, marked], tokenizer, n=100).behaviour.prompts}
    assert texts == {
        "One good line here.",
        "Two of them.",
        "Marked at its start.",
        "Marked at its start. Yes.",
    }
    with pytest.raises(BehaviourError, match=r"image\.png is a binary file"):
        mine([binary], tokenizer)
    with pytest.raises(BehaviourError, match=r"is UTF-16 text.*iconv"):
        mine([utf16], tokenizer)


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("", {}, r"a\.txt: no text, 0 bytes. Allowed: files with text"),
        ("No stop in here\nNor here\n", {}, r"no full stop in 1 text\. Is this the file"),
        ("Go.", {"min_tokens": 50}, "contexts shorter than 50 tokens"),
        ("Go.", {"n": 0}, "n is 0"),
        ("Go.", {"max_tokens": 10**6}, "which is as much as the model reads"),
        ("Go.", {"preset": "full-stop-capitols"}, "Did you mean 'full-stop-capitals'"),
        ("Go.", {"shard": (3, 2)}, "shard 3/2"),
    ],
)
def test_no_context_says_why(
    tokenizer: Tokenizer, tmp_path: Path, content: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(BehaviourError, match=says):
        mine([written(tmp_path / "a.txt", content)], tokenizer, **options)


def test_files_that_are_not_there_or_not_what_they_say(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(BehaviourError, match=r"there is no .*nowhere"):
        mine([tmp_path / "nowhere"], tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BehaviourError, match=r"no files to read in .*empty"):
        mine([tmp_path / "empty"], tokenizer)
    with pytest.raises(BehaviourError, match="is not a Parquet file"):
        mine([written(tmp_path / "a.parquet", b"PAR0")], tokenizer)
    pl.DataFrame({"body": ["Go."]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(BehaviourError, match=r"no text column 'text'.*body.*--text-field"):
        mine([tmp_path / "b.parquet"], tokenizer)
    with pytest.raises(BehaviourError, match=r"no line of .* is a JSON object"):
        mine([written(tmp_path / "a.jsonl", "1\n2\n")], tokenizer)
    for bad in ("2", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(BehaviourError, match="1/k to k/k"):
            mining.read_shard(bad)
    with pytest.raises(BehaviourError, match="balanced, natural"):
        mining.read_sampling("random")


def test_memory_is_bounded_by_the_sample_not_the_text(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    offer = _Sample.offer

    def watched(self: _Sample, *arguments: Any) -> None:
        nonlocal most
        offer(self, *arguments)
        most = max(most, len(self.kept))

    monkeypatch.setattr(_Sample, "offer", watched)
    found = mine([written(tmp_path / "a.txt", prose(400))], tokenizer, n=30)
    assert sum(found.found.values()) > 1000
    assert most == 30


CORPUS = "CASESTUDY_CORPUS"


def test_a_real_corpus(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = Path(os.environ.get(CORPUS, Path(__file__).parents[2].parent / "shared" / "corpus"))
    books = sorted(folder.glob("l*.txt"))[:1]
    if not books:
        pytest.skip(f"no text files in {folder}; set {CORPUS} to a folder of them")
    text = books[0].read_text(encoding="utf-8")[:200_000]
    found = mine([written(tmp_path / "book.txt", text)], tokenizer, n=200)
    assert sum(found.found.values()) == text.count(".")
    assert len(found.behaviour) > 100
    assert found.taken["sentence end"] > 20
