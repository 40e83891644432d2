"""A corpus by its name: a file or a hub dataset in, a list of texts out.

What a source can be (:func:`read` decides in this order):

* a file that exists: ``.jsonl`` (objects with ``text``, or bare JSON strings), ``.txt`` (one text per
  non-empty line), ``.parquet`` (column ``text``), and the same with ``.gz`` after it;
* ``org/name``, ``org/name:config``, ``org/name:config:split``, ``org/name@revision:…``: a dataset on the
  hub (``org/name::split`` when it has one config only). A ``hub://`` in front settles a doubt.

Of an object only ``text`` is taken, as the published loop does with the bio corpus, whose lines also
have a title and an abstract; an exported ``{"text": …}`` line gives its text, never the JSON around it.
This module knows nothing of tokens, batches or topics.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, cast

from rmu_exp.data import hub_datasets
from rmu_exp.data.hub_datasets import TEXT, Bad, Dataset, checked, values
from rmu_exp.support.errors import UserError, first_line

KINDS = ".jsonl, .txt, .parquet, or one of these with .gz"
_HUB = "hub://"
_DATASET = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^:@]+))?(?::(?P<rest>.*))?")
_ENDING = re.compile(r"\.[a-z]{2,8}$")


@dataclass(frozen=True)
class Corpus:
    """Texts in the order of their source."""

    texts: list[str]  # what is trained on, each longer than ``min_len`` characters
    source: str  # as given to :func:`read`
    bad_lines: int = 0  # malformed lines (or rows) that were skipped
    dropped: int = 0  # texts of ``min_len`` characters or fewer that were left out

    @cached_property
    def digest(self) -> str:
        """sha256 over the texts alone, hex: the same texts in the same order have the same digest, whatever the source.

        Each counts with its length, so that moving a border between two of them changes the sum.
        """
        total = hashlib.sha256()
        for text in self.texts:
            data = text.encode()
            total.update(len(data).to_bytes(8, "big") + data)
        return total.hexdigest()

    def describe(self) -> str:
        """One line: how many texts, how long they are in characters, what was left out."""
        lengths = sorted(len(text) for text in self.texts)
        low, middle, high = (lengths[round(q * (len(lengths) - 1))] for q in (0.05, 0.5, 0.95))
        left_out = [f"{self.dropped:,} too short"] * bool(self.dropped)
        left_out += [f"{self.bad_lines:,} malformed"] * bool(self.bad_lines)
        return (
            f"{self.source}: {len(lengths):,} texts of {lengths[0]:,} to {lengths[-1]:,} characters "
            f"(5 %, median, 95 %: {low:,}, {middle:,}, {high:,})"
            + (f"; left out: {', '.join(left_out)}" if left_out else "")
        )


def read(
    source: str, *, min_len: int = 0, on_bad_line: str = "error", split: str | None = None, limit: int | None = None
) -> Corpus:
    """The texts of a file or a hub dataset, in their order.

    Args:
        min_len: characters; a text is kept when ``len(text) > min_len``, as in the published loop.
        on_bad_line: ``error``, or ``skip`` to leave malformed lines out and count them.
        split: of a hub dataset when the source names none; None: ``train``.
        limit: keep the first so many texts and read no further; None: all.

    Raises:
        UserError: no such file or dataset, no access, a malformed line, or no text longer than ``min_len``.
        RunError: the hub cannot be reached, or a download broke off.
    """
    if on_bad_line not in ("error", "skip"):
        raise UserError(f"data.on_bad_line: got {on_bad_line!r}, allowed is error, skip")
    texts: list[str] = []
    bad = dropped = 0
    for item in _open(source, split):
        if isinstance(item, Bad):
            if on_bad_line == "error":
                raise UserError(f"{source}, {item.where}: {item.reason}; repair it, or add data.on_bad_line=skip")
            bad += 1
        elif len(item) > min_len:
            texts.append(item)
            if len(texts) == limit:
                break
        else:
            dropped += 1
    if not (texts or bad or dropped):
        raise UserError(f"{source}: is empty, no text in it; give a corpus with one text per line")
    if not texts:
        counts = [f"{dropped:,} are of {min_len} characters or fewer"] * bool(dropped)
        counts += [f"{bad:,} are malformed"] * bool(bad)
        reason = " and ".join(counts)
        raise UserError(f"{source}: no text is left ({reason}); lower data.min_len or give another corpus")
    return Corpus(texts, source, bad, dropped)


def dataset(source: str) -> Dataset | None:
    """The hub dataset that a source names, or None when it names a file (there or missing)."""
    named = source.removeprefix(_HUB)
    forced = named != source
    match = _DATASET.fullmatch(named)
    if match is None or not (forced or not (Path(source).expanduser().exists() or _looks_like_path(source))):
        return None
    config, _, split = (match["rest"] or "").partition(":")
    return Dataset(match["repo"], config or None, split or None, match["revision"])


def _open(source: str, split: str | None) -> Iterator[str | Bad]:
    hub = dataset(source)
    if hub is not None:
        return hub_datasets.rows(hub, split or "train", source)
    path = Path(source).expanduser()
    if path.is_dir():
        raise UserError(f"{source}: is a folder, allowed is a file ({KINDS}) or a hub dataset (hub://ORG/NAME)")
    if not path.exists():
        if _looks_like_path(source):
            raise UserError(f"{source}: no such file (looked in {path.absolute().parent}); check its name")
        raise UserError(f"{source}: neither a file ({KINDS}) nor a hub dataset ORG/NAME[:CONFIG[:SPLIT]]")
    return _file(path, source)


def _looks_like_path(source: str) -> bool:
    last = source.removesuffix(".gz")
    return source.startswith(("/", "./", "../", "~")) or bool(_ENDING.search(last)) or source.count("/") > 1


def _file(path: Path, source: str) -> Iterator[str | Bad]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    readers: dict[str, Callable[[IO[bytes]], Iterator[str | Bad]]] = {
        ".jsonl": lambda file: _lines(file, _json_text),
        ".txt": lambda file: _lines(file, lambda line: line),
        ".parquet": lambda file: _parquet(file, source),
    }
    if kind not in readers:
        raise UserError(f"{source}: got a file of kind {kind or 'unknown'}, allowed is {KINDS}")
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            yield from readers[kind](file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{source}: a broken .gz file ({error}); it may have been cut off, copy it again") from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"{source}: cannot be read ({reason})") from error


def _lines(file: IO[bytes], parse: Callable[[str], str]) -> Iterator[str | Bad]:
    for number, raw in enumerate(file, 1):
        where = f"line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            yield Bad(where, f"not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1})")
            continue
        if not line.strip():
            continue  # no record; a blank line at the end of a file is common
        try:
            yield parse(line)
        except ValueError as error:
            yield Bad(where, str(error))


def _json_text(line: str) -> str:
    """The text of one JSON line. Raises ValueError with what is wrong."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg} at column {error.colno}; plain text belongs in a .txt file)"
        ) from error
    except RecursionError as error:
        raise ValueError("not a text (nested too deeply)") from error
    if isinstance(value, dict):
        if TEXT not in value:
            raise ValueError(f"no field {TEXT!r} (there: {', '.join(map(str, value)) or 'none'})")
        value = value[TEXT]
    return checked(value)


def _parquet(file: IO[bytes], source: str) -> Iterator[str | Bad]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        if TEXT not in columns:
            raise UserError(f"{source}: no column {TEXT!r} (there: {', '.join(columns) or 'none'})")
        batches = (batch.column(0) for batch in table.iter_batches(columns=[TEXT]))
        yield from values(value for column in batches for value in column)
    except pa.ArrowException as error:
        raise UserError(f"{source}: a broken .parquet file ({first_line(error)}); copy it again") from error
