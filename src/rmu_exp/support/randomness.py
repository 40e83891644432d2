"""A source of chance for each use of it."""

from __future__ import annotations

import hashlib

import torch


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each use of chance, so that one use never shifts another."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
