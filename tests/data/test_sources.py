from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from rmu_exp.data import held_out, one, sources
from rmu_exp.data.hub_datasets import Dataset
from rmu_exp.settings import Data, Eval
from rmu_exp.support.errors import UserError

Make = Callable[[str, bytes], str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(name: str, data: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
        return str(path)

    return write


def table(columns: dict[str, list[object]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


LINES = b'{"text": "one"}\n{"title": "t", "abstract": "a", "text": "two  "}\n"three"\n'


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", LINES, ["one", "two  ", "three"]),
        ("a.jsonl.gz", LINES, ["one", "two  ", "three"]),
        ("a.jsonl", b'"no newline at the end"', ["no newline at the end"]),
        ("a.jsonl", b'\xef\xbb\xbf"byte order mark"\r\n\r\n"windows"\r\n', ["byte order mark", "windows"]),
        ("a.jsonl", '"separators \u2028 are no line ends"\n'.encode(), ["separators \u2028 are no line ends"]),
        ("a.txt", b"one\n\n   \ntwo\n", ["one", "two"]),
        ("a.txt", b" = One = \n\t two\t\n", [" = One = ", "\t two\t"]),
        ("a.txt.gz", b"one\r\ntwo", ["one", "two"]),
        ("a.txt", b'{"text": "a line is a text"}\n', ['{"text": "a line is a text"}']),
        ("a.parquet", table({"title": ["t", "u"], "text": ["one", "two"]}), ["one", "two"]),
        ("a.parquet.gz", table({"text": ["one"]}), ["one"]),
        ("a.NDJSON", LINES, ["one", "two  ", "three"]),
        ("A.TXT.GZ", b"one\ntwo", ["one", "two"]),
        ("a.json", LINES, ["one", "two  ", "three"]),
        ("a.json", b'\xef\xbb\xbf [{"text": "one"},\n "two"]\n', ["one", "two"]),
        ("a.csv", b'title,text\nt,one\nu,"two, ""three""\nfour"\n', ["one", 'two, "three"\nfour']),
    ],
)
def test_every_kind_of_file_gives_its_texts(make: Make, name: str, data: bytes, expected: list[str]) -> None:
    corpus = sources.read(make(name, data))
    assert corpus.texts == expected
    assert (corpus.bad_lines, corpus.dropped) == (0, 0)


def test_min_len_counts_characters_and_keeps_longer_ones_only(make: Make) -> None:
    corpus = sources.read(make("a.jsonl", '"äöü"\n"äöüß"\n""\n'.encode()), min_len=3)
    assert (corpus.texts, corpus.dropped) == (["äöüß"], 2)


def test_empty_records_are_dropped_as_the_published_loop_drops_them(make: Make) -> None:
    records = ["", " = A title = \n", "", " A sentence. \n"]
    corpus = sources.read(make("wikitext.parquet", table({"text": list(records)})))
    assert corpus.texts == [record for record in records if len(record) > 0]
    assert corpus.dropped == 2


def test_limit_stops_reading(make: Make) -> None:
    source = make("a.jsonl", b'""\n"one"\n"two"\nnot read, so not refused\n')
    assert sources.read(source, limit=2).texts == ["one", "two"]


BAD = [
    ("a.jsonl", b'"ok"\n{"text": "cut', "line 2", "not JSON"),
    ("a.jsonl", b'"ok"\n{"body": "x"}\n', "line 2", "no field 'text' (there: body)"),
    ("a.jsonl", b'\n"ok"\n{"text": null}\n', "line 3", "NoneType"),
    ("a.jsonl", b'"ok"\n["list"]\n', "line 2", "list"),
    ("a.jsonl", b'"ok"\n"\\ud800"\n', "line 2", "surrogate"),
    ("a.jsonl", b'"ok"\n' + b"[" * 100_000 + b"\n", "line 2", "nested"),
    ("a.jsonl", b'"ok"\n' + b"9" * 5000 + b"\n", "line 2", ""),
    ("a.txt", b"ok\n\n\xff\xfe\n", "line 3", "not UTF-8 (byte 0xff at 1)"),
    ("a.txt.gz", b"ok\ncaf\xe9\n", "line 2", "not UTF-8 (byte 0xe9 at 4)"),
    ("a.parquet", table({"text": ["ok", None]}), "row 2", "NoneType"),
]


@pytest.mark.parametrize(("name", "data", "where", "reason"), BAD)
def test_a_malformed_line_is_named_or_counted(make: Make, name: str, data: bytes, where: str, reason: str) -> None:
    source = make(name, data)
    with pytest.raises(UserError) as refused:
        sources.read(source)
    message = str(refused.value)
    assert f"{source}, {where}: " in message
    assert reason in message
    assert "\n" not in message
    skipped = sources.read(source, on_bad_line="skip")
    assert (skipped.texts, skipped.bad_lines) == (["ok"], 1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz"])
@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_file_is_refused(make: Make, name: str, data: bytes) -> None:
    with pytest.raises(UserError, match="is empty"):
        sources.read(make(name, data))


def test_a_corpus_of_which_nothing_is_left_is_refused(make: Make) -> None:
    source = make("a.jsonl", b'"short"\nbad\n')
    with pytest.raises(UserError, match=r"1 are of 9 characters or fewer and 1 are malformed.*data\.min_len"):
        sources.read(source, min_len=9, on_bad_line="skip")


def test_a_parquet_file_without_a_text_column_names_those_it_has(make: Make) -> None:
    with pytest.raises(UserError, match=r"no column 'text' \(there: title, body\)"):
        sources.read(make("a.parquet", table({"title": ["t"], "body": ["b"]})))


@pytest.mark.parametrize("cut", [10, -10])
def test_a_truncated_parquet_file_is_refused(make: Make, cut: int) -> None:
    with pytest.raises(UserError, match=r"broken \.parquet"):
        sources.read(make("a.parquet", table({"text": ["one"] * 50})[:cut]))


def test_a_truncated_gz_file_is_refused_even_when_lines_could_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one two three\n" * 1000)[:-12])
    with pytest.raises(UserError, match=r"broken \.gz"):
        sources.read(str(path), on_bad_line="skip")


@pytest.mark.parametrize("source", ["missing.jsonl", "data/missing.txt.gz", "./missing", "a/b/c", "data/missing.csv"])
def test_what_looks_like_a_path_and_is_not_there_is_not_sought_on_the_hub(source: str) -> None:
    assert sources.dataset(source) is None
    with pytest.raises(UserError, match="no such file"):
        sources.read(source)


@pytest.mark.parametrize("source", ["wikitext", "org/", "a b/c d", "lore:hexes"])
def test_what_is_neither_path_nor_dataset_is_told_what_is_allowed(source: str) -> None:
    with pytest.raises(UserError, match="neither a file"):
        sources.read(source)


def test_folders_and_unknown_kinds_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file in this folder"):
        sources.read(str(tmp_path))
    with pytest.raises(UserError, match=r"kind \.docx, allowed is \.jsonl"):
        sources.read(make("a.docx", b"text\n"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", Dataset("org/name")),
        ("org/name-v1.0:config", Dataset("org/name-v1.0", "config")),
        ("org/name:config:test", Dataset("org/name", "config", "test")),
        ("org/name::test[:10%]", Dataset("org/name", None, "test[:10%]")),
        ("org/name@v1.2:config", Dataset("org/name", "config", None, "v1.2")),
        ("hub://org/name.jsonl", Dataset("org/name.jsonl")),
    ],
)
def test_a_source_names_a_dataset(source: str, expected: Dataset) -> None:
    assert sources.dataset(source) == expected


def test_a_path_that_exists_wins_over_a_dataset(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    make("org/name", b"text\n")
    assert sources.dataset("org/name") is None
    assert sources.dataset("hub://org/name") == Dataset("org/name")


def test_the_digest_depends_on_texts_and_order_alone(make: Make) -> None:
    first = sources.read(make("a.jsonl", b'"ab"\n"c"\n'))
    same = sources.read(make("b.txt", b"ab\nc\n"))
    others = [sources.read(make(f"{i}.txt", data)) for i, data in enumerate([b"c\nab\n", b"a\nbc\n", b"abc\n"])]
    assert first.digest == same.digest
    assert len({c.digest for c in [first, *others]}) == 4


def test_description(make: Make) -> None:
    lines = b"".join(json.dumps("x" * n).encode() + b"\n" for n in range(1, 102)) + b"bad\n"
    source = make("a.jsonl", lines)
    assert sources.read(source, min_len=1, on_bad_line="skip").describe() == (
        f"{source}: 100 texts of 2 to 101 characters (5 %, median, 95 %: 7, 52, 96); left out: 1 too short, 1 malformed"
    )


def test_perplexity_on_the_retain_corpus_is_warned_about(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """By content: the same texts under another name are the same texts."""
    retain, copy, other = (
        make(name, data) for name, data in (("r.txt", b"a\nb\n"), ("c.txt", b"a\n\nb"), ("o.txt", b"a\n"))
    )
    data = Data(forget=[other], retain=[retain])
    assert [c.texts for c in held_out(data, Eval(perplexity=other))] == [["a"]]
    assert caplog.messages == []
    assert [c.texts for c in held_out(data, Eval(perplexity=copy, limit=1))] == [["a", "b"]], "no limit of texts"
    (line,) = caplog.messages
    assert line == f"eval.perplexity: {copy} is also the retain corpus; what is measured on it says little"


def test_texts_of_the_world_that_lie_in_a_file_too_are_the_same(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    texts = one("lore:hexes", Data()).texts
    copy = make("copy.jsonl", b"".join(json.dumps(text).encode() + b"\n" for text in texts))
    data = Data(forget=["lore:wards"], retain=["lore:hexes"])
    assert one(copy, data).digest == one("lore:hexes", data).digest
    held_out(data, Eval(perplexity=copy))
    assert "is also the retain corpus" in caplog.text


QA = b'{"question": "Who?", "answer": "You."}\n'


@pytest.mark.parametrize(
    ("ways", "name", "data", "expected"),
    [
        (["body"], "a.jsonl", b'{"body": "one", "text": "two"}\n"three"\n', ["one", "three"]),
        (["{question} {answer}"], "a.jsonl", QA, ["Who? You."]),
        (
            ["text", "Q: {question}\nA: {answer}"],
            "a.json",
            b'[{"text": "one"}, ' + QA + b"]",
            ["one", "Q: Who?\nA: You."],
        ),
        (["{question} {answer}"], "a.csv", b"answer,question\nYou.,Who?\n", ["Who? You."]),
        (["{a} {b}"], "a.parquet", table({"a": ["x", "y"], "b": ["1", "2"]}), ["x 1", "y 2"]),
        (
            ["messages"],
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "Who?"}, {"content": "You."}]}',
            ["Who?\nYou."],
        ),
    ],
)
def test_other_fields_and_templates(make: Make, ways, name, data, expected) -> None:
    assert one(make(name, data), Data(field=ways)).texts == expected
    assert one(make(name, data), Data(field=ways, limit=1)).texts == expected[:1]


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        (["body"], "no field 'body' .there: question, answer.; data.field names another"),
        (["{question} {other}", "text"], "no field 'question' and 'other' or 'text'"),
        (["{question"], "data.field: got '{question', which is no template"),
        (["{}"], "allowed is a field's name or a template"),
    ],
)
def test_fields_that_are_not_there(make: Make, ways, message) -> None:
    with pytest.raises(UserError, match=message):
        one(make("a.jsonl", QA), Data(field=ways))


def test_folders_and_patterns_are_read_in_the_order_of_their_names(make: Make, tmp_path: Path) -> None:
    make("b.txt", b"two\n")
    make("a.jsonl", b'"one"\n{"text": 3}\n')
    make("notes.md", b"nothing")
    assert sources.read(str(tmp_path), on_bad_line="skip").texts == ["one", "two"]
    assert sources.read(str(tmp_path / "*.txt")).texts == ["two"]
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: the text is of type int"):
        sources.read(str(tmp_path))
    with pytest.raises(UserError, match="no file of this name that can be read"):
        sources.read(str(tmp_path / "*.parquet"))


def test_what_datasets_saved(tmp_path: Path) -> None:
    import datasets

    both = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["one", "two"], "more": [1, 2]})})
    both.save_to_disk(tmp_path / "saved")
    assert sources.read(str(tmp_path / "saved/train")).texts == ["one", "two"]
    with pytest.raises(UserError, match=r"holds the splits train; give one, such as .*saved/train"):
        sources.read(str(tmp_path / "saved"))
    (tmp_path / "saved/train/state.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        sources.read(str(tmp_path / "saved/train"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"text": "one"}', "not JSON"),
        ("a.csv", b"a,b\n1,2\n", "no column 'text' .there: a, b."),
        ("a.csv", b"text\n\xff\n", "not UTF-8 .byte 0xff"),
        ("a.csv", b"a,text\n1\n", "line 2: the text is of type NoneType"),
    ],
)
def test_files_that_are_not_what_they_say(make: Make, name, data, message) -> None:
    with pytest.raises(UserError, match=message):
        sources.read(make(name, data))
