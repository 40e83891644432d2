"""Unfinished and cached work, and the fingerprint of what it was made from.

A store holds the parts of a long stage: one line per part, appended as soon as the part is done. A stage that is
interrupted anywhere finds its finished parts when it is started again. :func:`cached` keeps whole values that many runs
share, one file per fingerprint. Values pass through JSON, whether they were just made or read, so that both are the
same. This module knows nothing of what the values are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar, cast

from filelock import FileLock

from rmu_exp.support.errors import first_line
from rmu_exp.support.files import cache_path, write_atomic

log = logging.getLogger("rmu_exp")
T = TypeVar("T")
FSYNC = 2.0  # seconds between two flushes to the disk: what a power cut may cost


def fingerprint(*parts: object) -> str:
    """sha256 over what something was made from: anything that JSON can hold, in which order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(kind: str, fingerprint: str, make: Callable[[], T], anew: bool = False) -> T:
    """A value from the cache folder, as JSON gives it back; made when it is missing or damaged.

    Of processes that want it at the same time one makes it, the others wait. A cache that cannot be used costs the time
    of making it again, nothing else.

    Args:
        kind: what such values are, in the plural: the name of their folder.
        anew: make it again although it is there.
    """
    file = cache_path() / kind / f"{fingerprint}.json"
    with ExitStack() as held:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(f"{file}.lock"))
        if not anew:
            with suppress(OSError, ValueError):
                return cast(T, json.loads(file.read_text(encoding="utf-8")))
        content = json.dumps(make())
        try:
            write_atomic(file, content)
        except OSError as error:
            log.warning("%s are not kept in the cache: %s", kind.replace("_", " "), first_line(error))
        return cast(T, json.loads(content))


class Store:
    """The parts of one stage, kept in ``file`` (None: nowhere); parts with another fingerprint are thrown away."""

    def __init__(self, file: Path | None = None, fingerprint: str = "") -> None:
        self.file, self.fingerprint = file, fingerprint
        self.known: dict[str, object] = {}
        self._flushed = time.perf_counter()
        if file is not None and file.is_file():
            self._read(file)

    def get(self, part: str, make: Callable[[], T]) -> T:
        """A part as JSON gives it back (lists for tuples), made when it is not there yet."""
        if part not in self.known:
            self.add(part, make())
        return cast(T, self.known[part])

    def add(self, part: str, value: object) -> None:
        """Note a part that is done."""
        line = json.dumps([part, value])
        self.known[part] = json.loads(line)[1]
        if self.file is None:
            return
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            line = f"{json.dumps(self.fingerprint)}\n{line}"
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            if time.perf_counter() - self._flushed > FSYNC:
                os.fsync(file.fileno())
                self._flushed = time.perf_counter()

    def _read(self, file: Path) -> None:
        """Read what is there; a line that was cut off in the middle goes."""
        whole = file.read_bytes()
        lines = whole[: whole.rfind(b"\n") + 1].splitlines(keepends=True)
        good = 0
        try:
            if json.loads(lines[0]) != self.fingerprint:
                raise ValueError("parts of something else")
            good = len(lines[0])
            for line in lines[1:]:
                part, value = json.loads(line)
                self.known[part] = value
                good += len(line)
        except (ValueError, TypeError, IndexError):
            pass  # what comes after a damaged line is made again
        if good == 0:
            file.unlink()
        elif good < len(whole):
            os.truncate(file, good)
