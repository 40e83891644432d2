"""Texts of a run: where they come from, and the order they are trained in."""

from __future__ import annotations

import hashlib
import json
import logging

from rmu_exp.data.sources import Corpus, read
from rmu_exp.settings import Data, Eval
from rmu_exp.support.errors import UserError

LORE = "lore:"
log = logging.getLogger("rmu_exp")


def load(data: Data) -> tuple[list[Corpus], list[Corpus]]:
    """The forget corpora and the retain corpora, one a topic (the same one for all when one is given).

    Raises:
        UserError: a source that is missing, damaged or empty.
    """
    known: dict[str, Corpus] = {}
    for source in [*data.forget, *data.retain]:
        if source not in known:
            known[source] = one(source, data)
    retain = data.retain if len(data.retain) > 1 else data.retain * len(data.forget)
    return [known[s] for s in data.forget], [known[s] for s in retain]


def held_out(data: Data, settings: Eval) -> Corpus:
    """The texts that perplexity is measured on.

    Warns when the model was trained to keep them.
    """
    assert settings.perplexity is not None
    corpus = one(settings.perplexity, data)
    if corpus.digest in {one(source, data).digest for source in data.retain}:
        log.warning("eval.perplexity: %s is also the retain corpus; its perplexity says little", corpus.source)
    return corpus


def one(source: str, data: Data) -> Corpus:
    """One corpus by its source, as the data's settings read it. Raises as :func:`load`."""
    if not source.startswith(LORE):
        return read(source, min_len=data.min_len, on_bad_line=data.on_bad_line)
    from rmu_exp.worlds.lore import corpora

    try:
        texts = corpora.texts(source.removeprefix(LORE))
    except KeyError as error:
        raise UserError(f"data: {source}: {error.args[0]}, and retain") from error
    return Corpus(texts, source, hashlib.sha256(json.dumps(texts).encode()).hexdigest())
