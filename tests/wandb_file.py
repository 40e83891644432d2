"""Reads the transaction log that an offline run of W&B leaves (``run-….wandb``); wandb has no public reader.

The log is LevelDB's: a header of 7 bytes, then blocks of 32 KiB that hold pieces with a header of 7 bytes each.
https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, FULL, LAST = 32768, 1, 4
PIECE = struct.Struct("<IHB")  # checksum, length, type


def records(file: Path) -> Iterator[Any]:
    """W&B's protobuf records, in order."""
    from wandb.proto import wandb_internal_pb2 as pb

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + PIECE.size <= len(data):
        if BLOCK - at % BLOCK < PIECE.size:  # the rest of a block is too short for a header
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = PIECE.unpack_from(data, at)
        at += PIECE.size
        whole += data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            record = pb.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def logged(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of the run's history and its summary: name to value."""
    history, summary = list[dict[str, Any]](), dict[str, Any]()
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append(_values(record.history.item))
        elif kind == "summary":
            summary |= _values(record.summary.update)
    return history, summary


def _values(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
