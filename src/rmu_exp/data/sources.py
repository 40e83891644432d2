"""A corpus by its name: a file or a hub dataset in, a list of texts out.

What a source can be (:func:`read` decides in this order):

* a file that exists: ``.jsonl`` or ``.ndjson`` (objects with ``text``, or bare JSON strings), ``.json`` (an array of
  these, or the same lines), ``.txt`` (one text per non-empty line), ``.csv`` or ``.parquet`` (column ``text``), and the
  same with ``.gz`` after it;
* a folder of such files, a pattern such as ``texts/*.jsonl`` (in the order of their names), or a folder that
  ``datasets`` saved;
* ``org/name``, ``org/name:config``, ``org/name:config:split``, ``org/name@revision:…``: a dataset on the
  hub (``org/name::split`` when it has one config only). A ``hub://`` in front settles a doubt.

Of an object only ``text`` is taken, or what ``data.field`` names, as the published loop does with the bio corpus, whose
lines also have a title and an abstract; an exported ``{"text": …}`` line gives its text, never the JSON around it.
This module knows nothing of tokens, batches or topics.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, cast

from rmu_exp.data import hub_datasets
from rmu_exp.data.fields import Fields, checked
from rmu_exp.data.hub_datasets import Bad, Dataset
from rmu_exp.support.errors import UserError, first_line

KINDS = ".jsonl, .json, .txt, .csv, .parquet, or one of these with .gz"
_HUB = "hub://"
_DATASET = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^:@]+))?(?::(?P<rest>.*))?")
_ENDING = re.compile(r"\.[a-z]{2,8}$", re.IGNORECASE)
_SAVED = ("state.json", "dataset_dict.json")  # in a folder that ``datasets`` saved


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
    source: str,
    *,
    min_len: int = 0,
    on_bad_line: str = "error",
    split: str | None = None,
    limit: int | None = None,
    fields: Fields = Fields(),  # noqa: B008
) -> Corpus:
    """The texts of a file or a hub dataset, in their order.

    Args:
        min_len: characters; a text is kept when ``len(text) > min_len``, as in the published loop.
        on_bad_line: ``error``, or ``skip`` to leave malformed lines out and count them.
        split: of a hub dataset when the source names none; None: ``train``.
        limit: keep the first so many texts and read no further; None: all.
        fields: what of an object or a row is the text.

    Raises:
        UserError: no such file or dataset, no access, a malformed line, or no text longer than ``min_len``.
        RunError: the hub cannot be reached, or a download broke off.
    """
    if on_bad_line not in ("error", "skip"):
        raise UserError(f"data.on_bad_line: got {on_bad_line!r}, allowed is error, skip")
    texts: list[str] = []
    bad = dropped = 0
    for item in _open(source, split, fields):
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


def _open(source: str, split: str | None, fields: Fields) -> Iterator[str | Bad]:
    hub = dataset(source)
    if hub is not None:
        return hub_datasets.rows(hub, split or "train", source, fields)
    path = Path(source).expanduser()
    if path.is_dir() and any((path / name).is_file() for name in _SAVED):
        return hub_datasets.saved(path, source, fields)
    if path.is_dir() or (any(mark in path.name for mark in "*?[") and not path.exists()):
        return _files(path, source, fields)
    if not path.exists():
        if _looks_like_path(source):
            raise UserError(f"{source}: no such file (looked in {path.absolute().parent}); check its name")
        raise UserError(f"{source}: neither a file ({KINDS}) nor a hub dataset ORG/NAME[:CONFIG[:SPLIT]]")
    return _file(path, source, fields)


def _files(path: Path, source: str, fields: Fields) -> Iterator[str | Bad]:
    """The texts of the files of a folder, or of a pattern, in the order of their names."""
    found = path.iterdir() if path.is_dir() else path.parent.glob(path.name)
    files = sorted(file for file in found if file.is_file() and _kind(file) in READERS)
    if not files:
        where = "in this folder" if path.is_dir() else "of this name"
        raise UserError(f"{source}: no file {where} that can be read, allowed is {KINDS}")
    for file in files:
        for item in _file(file, str(file), fields):
            yield Bad(f"{file.name}, {item.where}", item.reason) if isinstance(item, Bad) else item


def _looks_like_path(source: str) -> bool:
    last = source.removesuffix(".gz")
    return source.startswith(("/", "./", "../", "~")) or bool(_ENDING.search(last)) or source.count("/") > 1


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file(path: Path, source: str, fields: Fields) -> Iterator[str | Bad]:
    kind = _kind(path)
    if kind not in READERS:
        raise UserError(f"{source}: got a file of kind {kind or 'unknown'}, allowed is {KINDS}")
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as file:
            yield from READERS[kind](file, source, fields)
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
            yield Bad(where, _not_utf8(error))
            continue
        if not line.strip():
            continue  # no record; a blank line at the end of a file is common
        try:
            yield parse(line)
        except ValueError as error:
            yield Bad(where, str(error))


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start + 1})"


def _txt(file: IO[bytes], source: str, fields: Fields) -> Iterator[str | Bad]:
    return _lines(file, lambda line: line)


def _jsonl(file: IO[bytes], source: str, fields: Fields) -> Iterator[str | Bad]:
    return _lines(file, partial(_json_text, fields=fields))


def _json(file: IO[bytes], source: str, fields: Fields) -> Iterator[str | Bad]:
    """An array of objects or strings; a file that begins otherwise has one JSON value per line."""
    raw = file.read()
    if not raw.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
        yield from _jsonl(io.BytesIO(raw), source, fields)
        return
    try:
        entries = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: {_not_utf8(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not JSON ({error}); one value per line belongs in a .jsonl file") from error
    for number, entry in enumerate(entries, 1):
        try:
            yield _text_of(entry, fields)
        except ValueError as error:
            yield Bad(f"entry {number}", str(error))


def _json_text(line: str, fields: Fields) -> str:
    """The text of one JSON line. Raises ValueError with what is wrong."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg} at column {error.colno}; plain text belongs in a .txt file)"
        ) from error
    except RecursionError as error:
        raise ValueError("not a text (nested too deeply)") from error
    return _text_of(value, fields)


def _text_of(value: object, fields: Fields) -> str:
    return fields.text(value) if isinstance(value, dict) else checked(value)


def _csv(file: IO[bytes], source: str, fields: Fields) -> Iterator[str | Bad]:
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
    try:
        columns = reader.fieldnames or []
        way = fields.of(columns)
        if way is None:
            raise UserError(f"{source}: {fields.lacking(columns, 'column')}")
        for row in reader:
            try:
                yield fields.put(way[0], row)
            except ValueError as error:
                yield Bad(f"line {reader.line_num}", str(error))
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: {_not_utf8(error)}; save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num}: not CSV ({error})") from error


def _parquet(file: IO[bytes], source: str, fields: Fields) -> Iterator[str | Bad]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        way = fields.of(columns)
        if way is None:
            raise UserError(f"{source}: {fields.lacking(columns, 'column')}")
        batches = table.iter_batches(columns=way[1])
        rows = (row for batch in batches for row in zip(*(batch.column(name) for name in way[1]), strict=True))
        yield from hub_datasets.values(rows, way, fields)
    except pa.ArrowException as error:
        raise UserError(f"{source}: a broken .parquet file ({first_line(error)}); copy it again") from error


READERS: dict[str, Callable[[IO[bytes], str, Fields], Iterator[str | Bad]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".txt": _txt,
    ".csv": _csv,
    ".parquet": _parquet,
}
