"""Tokens, keys and passwords: found in any text, and taken out of it before it is shown or written.

What counts: values of environment variables that are named like secrets, what huggingface_hub and W&B keep in
the user's home, credentials in a URL, and words of the form that the hub and W&B give to tokens.
"""

from __future__ import annotations

import logging
import netrc
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # characters; shorter values of variables would be found inside ordinary words
NAMED = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
NOT_SECRET = re.compile(r"TOKENIZERS|_(FILE|PATH|DIR)$|^DISABLE_|IMPLICIT_TOKEN")
URL = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)(?P<user>[^\s/@'\"?#]+)@")
FORMS = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bwandb_v1_\w{20,}|(?<=://)local-[0-9a-f]{40}|(?i:\bbearer )[\w.~+/-]{8,}=*")
KEYED = re.compile(
    r"(?i)(?P<key>\b[\w.-]*(?:token|password|secret|api_?key)['\"]?\s*[=:]\s*['\"]?)(?P<value>[\w.~+/-]{8,})"
)


def redact(text: str) -> str:
    """The text with ``***`` in the place of every secret."""
    for value in _known():
        text = text.replace(value, HIDDEN)
    text = URL.sub(rf"\g<scheme>{HIDDEN}@", text)
    return KEYED.sub(_keyed, FORMS.sub(HIDDEN, text))


def _keyed(found: re.Match[str]) -> str:
    """Of ``token=…`` only what may be a token: it has a digit in it, and is no number, path or name."""
    value = found["value"]
    looks = len(value) >= 16 and any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return found["key"] + (HIDDEN if looks and "/" not in value else value)


def holds(value: Any) -> bool:
    """Whether a setting holds a secret."""
    return redact(str(value)) != str(value)


class Formatter(logging.Formatter):
    """A log's formatter that writes no secret, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _known() -> list[str]:
    """Secrets of this process's environment and user, the longest first."""
    found = {value for name, value in os.environ.items() if NAMED.search(name) and not NOT_SECRET.search(name)}
    for value in os.environ.values():
        for credentials in URL.finditer(value):
            password = credentials["user"].partition(":")[2]
            found |= {password, urllib.parse.unquote(password)}
    found |= set(_at_home(str(Path.home()), os.environ.get("HF_HOME"), os.environ.get("NETRC")))
    return sorted((v for v in found if len(v) >= SHORTEST), key=len, reverse=True)


@lru_cache(maxsize=4)
def _at_home(home: str, hub: str | None, net: str | None) -> tuple[str, ...]:
    """What ``hf auth login`` and ``wandb login`` left."""
    found: list[str] = []
    token = Path(hub or Path(home) / ".cache" / "huggingface") / "token"
    with suppress(OSError, ValueError):
        found.append(token.read_text(encoding="utf-8").strip())
    return (*found, *_passwords(Path(net or Path(home) / ".netrc")))


def _passwords(file: Path) -> Iterator[str]:
    try:
        for _, _, password in netrc.netrc(str(file)).hosts.values():
            if password:
                yield password
    except (OSError, ValueError, netrc.NetrcParseError):
        return
