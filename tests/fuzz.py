"""Input to break programs with: strategies of hypothesis, and the one rule that every answer must keep."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from rmu_exp.support.errors import RunError, UserError

numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([10**12, -(10**12), 2**63, 2**64, 10**30, 0.5, 1e-300, 1e300, -0.0]),
    st.floats(allow_nan=True, allow_infinity=True),
)
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "null", "true", "nan", "..", "/", "~", "a/b", "lore", "\x00", "é" * 300, "‮x", "😀", "-1", "1e999"]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON or YAML value with one thing in it replaced, left out, or put in."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        what = draw(st.integers(0, 9))
        rest = {k: v for k, v in value.items() if k != key}
        if what == 0:
            return rest
        if what == 1:
            return value | {draw(words): draw(values)}
        return {k: draw(changed(v)) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        what = draw(st.integers(0, 5))
        if what == 0:
            return value[:place] + value[place + 1 :]
        if what == 1:
            return [*value[:place], draw(values), *value[place:]]
        return [*value[:place], draw(changed(value[place])), *value[place + 1 :]]
    return draw(values)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's bytes cut off, overwritten, grown, or replaced."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    junk = draw(st.binary(min_size=1, max_size=16))
    cut, over = content[:place], content[place + len(junk) :]
    grown = cut + junk + content[place:]
    return draw(st.sampled_from([b"", cut, cut + junk + over, grown, junk, content + junk, content * 2]))


@st.composite
def changed_file(draw: st.DrawFn, file: Path) -> bytes:
    """What a file may hold after an accident or an attempt: its structure changed where it has one, or its bytes."""
    content = file.read_bytes()
    how = draw(st.integers(0, 3))
    if how == 0 or (file.suffix == ".safetensors" and how == 1):
        return draw(damaged(content))
    if file.suffix == ".json":
        return json.dumps(draw(changed(json.loads(content)))).encode("utf-8", "surrogatepass")
    if file.suffix == ".jsonl":
        lines = draw(changed([json.loads(line) for line in content.splitlines()]))
        listed = lines if isinstance(lines, list) else [lines]
        return "\n".join(map(json.dumps, listed)).encode("utf-8", "surrogatepass")
    if file.suffix == ".yaml":
        import yaml

        return yaml.safe_dump(draw(changed(yaml.safe_load(content))), allow_unicode=False).encode()
    if file.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(draw(changed(json.loads(content[8 : 8 + size])))).encode("utf-8", "surrogatepass")
        return len(header).to_bytes(8, "little") + header + content[8 + size :]
    return draw(damaged(content))


def told(call: Callable[[], Any]) -> Any:
    """The call's value, or the line that it is refused in. Any other error is a find."""
    try:
        return call()
    except (UserError, RunError) as error:
        line = str(error)
        assert line.strip(), "nothing said"
        assert len(line.splitlines()) == 1, repr(line)
        return error


def command(main: Callable[[list[str]], int], given: list[str]) -> tuple[int, str]:
    """Exit status and standard output of a command, whose standard error must be at most one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(given)
    lines = err.getvalue().splitlines()
    assert status in (0, 1, 2)
    if status == 2:
        assert len(lines) == 1, lines
        assert lines[0].startswith("rmu_exp: ")
    assert "Traceback" not in err.getvalue()
    return status, out.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
