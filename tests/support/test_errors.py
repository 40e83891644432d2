"""Messages are one line, whatever stands in what they quote; errors of all kinds become one."""

from __future__ import annotations

import errno

import pytest
import torch

from rmu_exp.cli.entry import existing_part
from rmu_exp.support.boundary import line_for, one_line
from rmu_exp.support.errors import RunError, UserError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("no field 'text' (there: a\r)", "no field 'text' (there: a )"),
        ("first\nsecond\u2028third", "first second third"),
        ("\x1b[2Jkey: é ≥ 0", "\\x1b[2Jkey: é ≥ 0"),
        ("half \ud800, turned \u202e", "half \\ud800, turned \\u202e"),
    ],
)
def test_one_line_that_a_terminal_only_shows(given, told):
    for kind in (UserError, RunError):
        assert str(kind(given)) == told


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(28, "No space left on device", "/somewhere/file")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a fault"), None),
        (UserError("key: wrong"), UserError("key: wrong")),
        (caused(ValueError("wrapped"), UserError("key: wrong")), UserError("key: wrong")),
        (FULL, RunError("no space left on /somewhere; free some, then run it again")),
        (
            caused(RunError("export: failed"), FULL),
            RunError("no space left on /somewhere; free some, then run it again"),
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nMore"),
            RunError("out of memory (CUDA out of memory.); try a smaller batch or model.dtype, or a larger device"),
        ),
    ],
)
def test_errors_at_the_boundary(error, line, tmp_path):
    found = line_for(error)
    assert (type(found), str(found)) == (type(line), str(line))
    with pytest.raises(type(line or error)), one_line(tmp_path):
        raise error


def test_the_caller_knows_more_and_a_runs_log_is_named(tmp_path):
    (tmp_path / "run.log").touch()
    assert str(line_for(FULL, tmp_path)).endswith(f"run it again (log: {tmp_path / 'run.log'})")
    known = lambda error: UserError("key: no number") if isinstance(error, ValueError) else None  # noqa: E731
    assert line_for(KeyError(), more=(known,)) is None
    assert str(line_for(ValueError(), more=(known,))) == "key: no number"


def test_an_output_on_a_read_only_disk_is_the_users_to_change(tmp_path, monkeypatch):
    """It was called a disk that has become read-only, with exit status 1."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only", str(tmp_path))

    monkeypatch.setattr("tempfile.TemporaryDirectory", refused)
    with pytest.raises(UserError, match=r"output: cannot write to .*read-only file system.*choose another") as caught:
        existing_part(tmp_path / "run")
    assert line_for(caught.value) is caught.value
