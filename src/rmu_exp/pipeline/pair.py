"""The base model and what was made from it, side by side, as the folder of a run or of a judgement has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from rmu_exp.evaluation import generate
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.judgement import prepare_judgement
from rmu_exp.pipeline.models import Models
from rmu_exp.pipeline.record import Record
from rmu_exp.record import rundir
from rmu_exp.settings import Judge, Model
from rmu_exp.support.errors import UserError


class Written(NamedTuple):
    """What both models write after a prompt."""

    base: str
    unlearned: str


@dataclass(frozen=True)
class Pair:
    """A base model, and the tensors that differ."""

    models: Models
    delta: Delta

    @classmethod
    def of(cls, folder: Path, base: str | None = None) -> Pair:
        """Both models of a run or a judgement; ``base``: where the base is now, when it was moved.

        Raises UserError: the folder is none, has no changed weights, or its base is another one now.
        """
        config = folder / rundir.CONFIG
        if not config.is_file():
            raise UserError(f"{folder}: no {rundir.CONFIG} in it; give the folder of a run or a judgement")
        run = rundir.of(config)
        return cls._judged(run, base) if run.judged else cls._trained(run, base)

    @classmethod
    def _trained(cls, run: rundir.RunDir, base: str | None) -> Pair:
        """The base of a run, and the Delta that it trained."""
        if not (run.folder / rundir.DELTA).is_file():
            raise UserError(f"{run.folder}: a run without a model (no {rundir.DELTA}); let it finish first")
        delta = Delta.load(run.folder / rundir.DELTA)
        models = Models.find(run.part("model", Model), base, delta.base.get("revision") or None)
        delta.refuse_other_base(models.base, f"{run.folder}")
        return cls(models, delta)

    @classmethod
    def _judged(cls, run: rundir.RunDir, base: str | None) -> Pair:
        """The base of a judgement and what the judged model differs by from it; they must be those that were judged."""
        judge = run.settings
        assert isinstance(judge, Judge)
        judged = prepare_judgement(
            dataclasses.replace(judge, base=base or judge.base), record := Record(judge, run.folder)
        )
        judged.check(record)
        return cls(judged.models, judged.delta)

    @cached_property
    def model(self) -> nn.Module:
        """The base model, into which the changed tensors are put for as long as they are needed."""
        return self.models.open(None)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, which both models share."""
        return self.models.base.tokenizer()

    def write(self, prompt: str, tokens: int, seed: int | None = None, plain: bool = False) -> Written:
        """What both models write after a prompt: greedily, or sampled with the random numbers of ``seed``.

        Args:
            tokens: at most so many, as :meth:`refuse` allows.
            plain: the prompt is continued as it stands, also where the tokenizer has a chat template.

        Raises:
            UserError: the prompt has no token for the model.
        """
        ids, context = encoded(self.tokenizer, prompt, plain), self.models.base.context
        if not ids:
            raise UserError("this prompt has no token for the model; write something else")

        def write() -> str:
            (found,) = generate.write(self.model, self.tokenizer, [ids], tokens=tokens, context=context, seeds=[seed])
            return found.text

        before = write()
        with self.delta.applied(self.model):
            return Written(before, write())

    def refuse(self, tokens: int, key: str) -> None:
        """Refuse to write no token, or more than the model reads (UserError that begins with ``key``)."""
        if tokens < 1:
            raise UserError(f"{key}: got {tokens}, allowed is 1 or more")
        if tokens >= (context := self.models.base.context):
            raise UserError(f"{key}: got {tokens}, but the model reads no more than {context}; take fewer")


def encoded(tokenizer: Any, prompt: str, plain: bool) -> list[int]:
    """A prompt's tokens: as the user's turn in the chat template where there is one, or as it stands."""
    if plain or not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(prompt)["input_ids"])
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
