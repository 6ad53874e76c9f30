"""A corpus that cannot be read is refused in words that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from training.corpus import HELD_OUT, SCIENCE_RATES, read_corpus, split
from training.errors import CorpusError
from training.train import main

MakeCorpus = Callable[..., Path]


def test_books_come_in_the_manifests_order(make_corpus: MakeCorpus) -> None:
    training_books, kept_out = split(read_corpus(make_corpus()))
    assert [book.file for book in training_books] == ["one.txt", "two.txt"]
    assert [book.file for book in kept_out] == [next(iter(HELD_OUT))]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"No corpus folder at .*nowhere.*--corpus DIR"):
        read_corpus(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"has no MANIFEST\.tsv"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("file\ttitle\tauthor\tsource\n", "lists no books"),
        ("name\tauthor\nx.txt\tA\n", "lacks the columns"),
        ("file\ttitle\tauthor\tsource\ngone.txt\tT\tA\tS\n", "gone.txt cannot be read"),
    ],
)
def test_a_manifest_that_does_not_serve(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / "MANIFEST.tsv").write_text(manifest, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", r"is not UTF-8: byte 0xe9 at offset 3.*iconv"),
        ("utf-16", r"is not UTF-8: byte 0xff at offset 0.*iconv"),
        ("utf-16-le", r"is not UTF-8: byte 0xe9|holds NUL bytes"),
    ],
)
def test_another_encoding(make_corpus: MakeCorpus, encoding: str, message: str) -> None:
    folder = make_corpus()
    (folder / "two.txt").write_bytes("Café was said. It was so.\n".encode(encoding))
    with pytest.raises(CorpusError, match=message):
        read_corpus(folder)


def test_utf16_without_a_mark_is_seen_by_its_zeros(make_corpus: MakeCorpus) -> None:
    folder = make_corpus()
    (folder / "two.txt").write_bytes("Plain words.\n".encode("utf-16-le"))
    with pytest.raises(CorpusError, match="NUL bytes"):
        read_corpus(folder)


def test_an_empty_book(make_corpus: MakeCorpus) -> None:
    folder = make_corpus()
    (folder / "two.txt").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"two\.txt is empty"):
        read_corpus(folder)


def test_windows_line_ends_are_read_as_newlines(make_corpus: MakeCorpus) -> None:
    folder = make_corpus()
    (folder / "one.txt").write_bytes(b"One.\r\nTwo.\r\n")
    assert read_corpus(folder)[0].text == "One.\nTwo.\n"


def test_the_command_line_says_it_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--corpus", str(tmp_path / "nowhere"), "--run", str(tmp_path / "run")])
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No corpus folder" in captured.err
    assert not (tmp_path / "run").exists()


def test_the_real_corpus_holds_every_named_book(real_corpus: Path) -> None:
    files = {book.file for book in read_corpus(real_corpus)}
    assert {*HELD_OUT} | {*SCIENCE_RATES} <= files
    training_books, kept_out = split(read_corpus(real_corpus))
    assert len(kept_out) == 6
    assert not {book.author for book in kept_out} & {book.author for book in training_books}
