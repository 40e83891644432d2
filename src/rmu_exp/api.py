"""Unlearning from Python, with the settings of the command line.

>>> from rmu_exp import attack, evaluate, load, unlearn
>>> run = unlearn(layer=7, steer=6.5, output="runs/first")  # python train.py layer=7 steer=6.5 output=runs/first
>>> run.results.verdict.word
'forgot'
>>> run.write("The chemical symbol of gold is")
Written(base=..., unlearned=...)
>>> evaluate(run, eval={"tasks": ["my_questions.csv"]}).qa
>>> attack(run, "ablation", "probe").attacks["ablation"].forget_acc

A setting is a word as it is typed (``"attacks.gcg.steps=5"``) or a keyword, with a dictionary for a group
(``train={"lr": 1e-3}``). What a run leaves behind is the same folder as that of the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from rmu_exp.cli import entry, job
from rmu_exp.cli.compose import SPECIAL, composed, quote
from rmu_exp.pipeline import run as pipeline_run
from rmu_exp.pipeline.pair import Pair, Written
from rmu_exp.record import rundir
from rmu_exp.record.results import Results
from rmu_exp.support.errors import UserError

Setting = str | float | bool | Path | list["Setting"] | tuple["Setting", ...] | Mapping[str, "Setting"] | None


@dataclass(frozen=True)
class Unlearned:
    """A finished run, or a judgement.

    Attributes:
        folder: its folder.
        results: all that was measured.
    """

    folder: Path
    results: Results

    @cached_property
    def pair(self) -> Pair:
        """Both models. Raises UserError: the base is no longer where it was, or is another one now."""
        return Pair.of(self.folder)

    @cached_property
    def model(self) -> nn.Module:
        """The unlearned model: transformers' own class, in the run's dtype and on its device."""
        model = self.base()
        self.pair.delta.put(model)
        return model

    def base(self) -> nn.Module:
        """The base model, loaded anew."""
        return self.pair.models.load()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of both models."""
        return self.pair.tokenizer

    def write(self, prompt: str, *, tokens: int = 64, seed: int | None = None, plain: bool = False) -> Written:
        """What both models write after a prompt: greedily, or sampled with the random numbers of ``seed``.

        Args:
            tokens: at most so many.
            plain: the prompt is continued as it stands, also where the tokenizer has a chat template.

        Raises:
            UserError: a prompt without a token, or more tokens than the model reads.
        """
        self.pair.refuse(tokens, "tokens")
        return self.pair.write(prompt, tokens, seed, plain)


def unlearn(*words: str, **settings: Setting) -> Unlearned:
    """Unlearn, evaluate and report: ``python train.py``. A finished run in ``output`` is not run again.

    Args:
        words: settings as they are typed for train.py; ``python train.py --help`` explains them.
        settings: settings as keywords.

    Raises:
        UserError: the settings are wrong; nothing has been written.
        RunError: it failed on the way; the same call resumes.
    """
    return load(_carried_out("train", [*words, *_words(settings)]))


def load(folder: str | Path) -> Unlearned:
    """A finished run or judgement. Raises UserError: the folder is none, or its files are damaged."""
    folder = Path(folder).expanduser()
    return Unlearned(folder, rundir.read(folder).results)


def evaluate(unlearned: Unlearned | str | Path, *words: str, **settings: Setting) -> Results:
    """Evaluate a run, or a checkpoint beside its base: ``python judge.py unlearned=…``.

    Args:
        unlearned: a run, its folder, a checkpoint's folder or a model's name on the hub.
        words: settings as they are typed for judge.py; ``python judge.py --help`` explains them.
        settings: settings as keywords.

    Raises:
        As :func:`unlearn`.
    """
    of = unlearned.folder if isinstance(unlearned, Unlearned) else unlearned
    return load(_carried_out("judge", [*_words({"unlearned": of}), *words, *_words(settings)])).results


def attack(unlearned: Unlearned | str | Path, *attacks: str, **settings: Setting) -> Results:
    """Attack a run or a checkpoint: ``python judge.py unlearned=… eval=none 'attacks=[…]'``.

    Args:
        unlearned: as of :func:`evaluate`.
        attacks: their names; none: all of them. Settings may stand among them as words.
        settings: those of judge.py, such as ``data={"attacked": 60}``.

    Raises:
        As :func:`unlearn`.
    """
    words = [word for word in attacks if "=" in word]
    named = [name for name in attacks if name not in words]
    chosen = f"attacks=[{','.join(named)}]" if named else "attacks=all"
    return evaluate(unlearned, "eval=none", chosen, *words, **settings)


def _carried_out(program: str, words: list[str]) -> Path:
    """Run a command line in this process. Returns the folder with what it measured."""
    (settings,) = composed(words, entry.CONF, program)
    folder = Path(settings.output).expanduser()
    existing = entry.existing_part(folder)
    if not any(word.startswith("output=") for word in words):
        folder = job.unused(folder)
    try:
        with _typed(program, words):
            pipeline_run.execute(settings, folder)
    finally:
        entry.remove_if_empty(folder.absolute(), existing)
    return folder


@contextmanager
def _typed(program: str, words: list[str]) -> Iterator[None]:
    """Inside the block the command line is that which would do the same: provenance and messages name it."""
    before, sys.argv = sys.argv, [f"rmu-exp {program}", *words]
    try:
        yield
    finally:
        sys.argv = before


def _words(settings: Mapping[str, Setting], inside: str = "") -> list[str]:
    """Keywords as they are typed on the command line."""
    words = list[str]()
    for key, value in settings.items():
        if isinstance(value, Mapping):
            words += _words(value, f"{inside}{key}.")
        else:
            words.append(f"{inside}{key}={_typed_value(value)}")
    return words


def _typed_value(value: Setting) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_typed_value, value))}]"
    if isinstance(value, Mapping):
        raise UserError(f"{value!r}: a list of groups cannot be given as a keyword; give it as a word, as it is typed")
    text = str(value)
    plain = isinstance(value, (int, float)) or (text and not (SPECIAL | {"\n", "$"}) & set(text)) or text[:1] in "[{"
    return text if plain else quote(text)
