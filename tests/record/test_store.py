"""Parts of a stage are done once, whatever happens to the file in between."""

from __future__ import annotations

import pytest

from rmu_exp.record.store import Store, cached, fingerprint


def made(counted: list[str], name: str):
    def make():
        counted.append(name)
        return (name, 0.1 + 0.2)

    return make


def test_parts_are_done_once_and_come_back_equal(tmp_path):
    counted: list[str] = []
    journal = Store(tmp_path / "state" / "a.jsonl", "settings")
    first = [journal.get(name, made(counted, name)) for name in ("x", "y", "x")]
    again = Store(tmp_path / "state" / "a.jsonl", "settings")
    assert [again.get(name, made(counted, name)) for name in ("x", "y", "x")] == first
    assert first[0] == ["x", 0.1 + 0.2]
    assert counted == ["x", "y"]


def test_without_a_file_nothing_is_kept():
    counted: list[str] = []
    journal = Store()
    assert journal.get("x", made(counted, "x")) == journal.get("x", made(counted, "x"))
    Store().get("x", made(counted, "x"))
    assert counted == ["x", "x"]


def test_parts_of_something_else_are_thrown_away(tmp_path):
    Store(tmp_path / "a.jsonl", "steer=6.5").add("x", 1)
    other = Store(tmp_path / "a.jsonl", "steer=7")
    assert other.known == {}
    other.add("x", 2)
    assert Store(tmp_path / "a.jsonl", "steer=7").known == {"x": 2}


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_file_cut_off_anywhere(tmp_path, cut):
    """What was whole is taken up, and what is added behind it can be read again."""
    file = tmp_path / "a.jsonl"
    journal = Store(file, "s")
    journal.add("x", [1, 2])
    journal.add("y", [3, 4])
    file.write_bytes(file.read_bytes()[:-cut] if cut < file.stat().st_size else b"")
    again = Store(file, "s")
    assert again.known in ({}, {"x": [1, 2]}, {"x": [1, 2], "y": [3, 4]})
    again.add("z", 5)
    assert Store(file, "s").known == again.known


def test_a_damaged_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'"s"\n["x", 1]\n\xff\xfe garbage\n["y", 2]\n')
    assert Store(file, "s").known == {"x": 1}
    assert file.read_bytes() == b'"s"\n["x", 1]\n'


def test_a_cached_value_is_made_once_and_again_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path))
    counted: list[str] = []
    key = fingerprint("model", {"b": 1, "a": 2})
    assert key == fingerprint("model", {"a": 2, "b": 1})
    for _ in range(2):
        assert cached("kind", key, made(counted, "x")) == ["x", 0.1 + 0.2]
    cached("kind", key, made(counted, "again"), anew=True)
    (tmp_path / "kind" / f"{key}.json").write_text("[1")
    cached("kind", key, made(counted, "damaged"))
    assert counted == ["x", "again", "damaged"]


def test_a_cache_that_cannot_be_written_costs_the_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "file"))
    assert cached("kinds_of_things", "key", made([], "x")) == ["x", 0.1 + 0.2]
    assert "kinds of things are not kept in the cache" in caplog.text
