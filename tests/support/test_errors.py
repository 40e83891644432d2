"""Messages are one line, whatever stands in what they quote."""

from __future__ import annotations

import pytest

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
