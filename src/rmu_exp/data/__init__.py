"""Texts of a run: where they come from, and the order they are trained in."""

from __future__ import annotations

import logging

from rmu_exp import worlds
from rmu_exp.data.fields import Fields
from rmu_exp.data.sources import Corpus, read
from rmu_exp.settings import Data, Eval
from rmu_exp.support.errors import UserError

log = logging.getLogger("rmu_exp")


def load(data: Data) -> tuple[list[Corpus], list[Corpus]]:
    """The forget corpora and the retain corpora, one per topic (the same one for all when one is given).

    Raises:
        UserError: a source that is missing, damaged or empty.
    """
    known: dict[str, Corpus] = {}
    for source in [*data.forget, *data.retain]:
        if source not in known:
            known[source] = one(source, data)
    retain = data.retain if len(data.retain) > 1 else data.retain * len(data.forget)
    return [known[s] for s in data.forget], [known[s] for s in retain]


def held_out(data: Data, settings: Eval) -> list[Corpus]:
    """The texts that perplexity is measured on, all of them: ``eval.limit`` counts questions.

    Warns when they are those that the model was trained to keep, under whatever name.
    """
    return [_not_retained("eval.perplexity", source, data) for source in settings.held_out]


def neutral(data: Data) -> Corpus | None:
    """The texts that damage is measured on; None: none are named. Warns as :func:`held_out`."""
    return _not_retained("data.neutral", data.neutral, data) if data.neutral else None


def _not_retained(key: str, source: str, data: Data) -> Corpus:
    corpus = one(source, data)
    if corpus.digest in {one(source, data).digest for source in data.retain}:
        log.warning("%s: %s is also the retain corpus; what is measured on it says little", key, corpus.source)
    return corpus


def one(source: str, data: Data) -> Corpus:
    """One corpus by its source, as the data's settings read it. Raises as :func:`load`."""
    world = worlds.find(source) if ":" in source else None
    if world is None:
        fields = Fields(tuple(data.field))
        return read(source, min_len=data.min_len, on_bad_line=data.on_bad_line, limit=data.limit, fields=fields)
    try:
        return Corpus(world.texts(source.partition(":")[2])[: data.limit], source)
    except KeyError as error:
        raise UserError(f"data: {source}: {error.args[0]}, and retain") from error
