"""Ask both models of a run or a judgement, side by side.

Type a prompt; base and unlearned model answer. A tokenizer's chat template is used where it has one; --plain has the
models continue the text as it stands. An empty line, Ctrl-D or Ctrl-C ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import nn

from rmu_exp.evaluate import generate
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.judgement import prepare_judgement
from rmu_exp.pipeline.models import Models
from rmu_exp.pipeline.record import Record
from rmu_exp.record import rundir
from rmu_exp.settings import Judge, Model
from rmu_exp.support.errors import UserError

NARROW = 60  # columns of a terminal in which two answers do not stand side by side


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="the folder of a run or a judgement")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="answer these and end; none: ask for them")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="write at most so many tokens (64)")
    parser.add_argument("--seed", type=int, metavar="N", help="sample, with random numbers of this seed; not: greedily")
    parser.add_argument("--plain", action="store_true", help="continue the text; use no chat template")
    parser.add_argument("--base", metavar="BASE", help="where the base is now, when it is not where the run found it")


def run(args: argparse.Namespace) -> int:
    """Answer prompts by both models."""
    if args.tokens < 1:
        raise UserError(f"--tokens: got {args.tokens}, allowed is 1 or more")
    config = args.folder / rundir.CONFIG
    if not config.is_file():
        raise UserError(f"{args.folder}: no {rundir.CONFIG} in it; give the folder of a run or a judgement")
    models, delta = _judged(args) if rundir.of(config).judged else _trained(args)
    tokenizer, context = models.base.tokenizer(), models.base.context
    if args.tokens >= context:
        raise UserError(f"--tokens: got {args.tokens}, but the model reads no more than {context}; take fewer")
    model, console = models.open(None), Console()

    def answer(prompt: str) -> None:
        ids = encoded(tokenizer, prompt, args.plain)
        if not ids:
            return console.print("this prompt has no token for the model; write something else", style="dim")
        before, after = both(model, delta, lambda: _write(model, tokenizer, ids, context, args.tokens, args.seed))
        console.print(side_by_side(before, after, console.width))

    for prompt in args.prompts or asked(console):
        if args.prompts:
            console.print(Text(f"> {prompt}", style="bold"))
        answer(prompt)
    return 0


def _trained(args: argparse.Namespace) -> tuple[Models, Delta]:
    """The base of a run, and the Delta that it trained."""
    if not (args.folder / rundir.DELTA).is_file():
        raise UserError(f"{args.folder}: a run without a model (no {rundir.DELTA}); let it finish first")
    delta = Delta.load(args.folder / rundir.DELTA)
    settings = rundir.of(args.folder / rundir.CONFIG).part("model", Model)
    models = Models.find(settings, args.base, delta.base.get("revision") or None)
    delta.refuse_other_base(models.base, f"{args.folder}")
    return models, delta


def _judged(args: argparse.Namespace) -> tuple[Models, Delta]:
    """The base of a judgement, and what the judged model differs by from it; they must be those that were judged."""
    judge = rundir.of(args.folder / rundir.CONFIG).settings
    assert isinstance(judge, Judge)
    record = Record(judge, args.folder)
    judged = prepare_judgement(dataclasses.replace(judge, base=args.base or judge.base), record)
    judged.check(record)
    return judged.models, judged.delta


def encoded(tokenizer: Any, prompt: str, plain: bool) -> list[int]:
    """A prompt's tokens: as the user's turn in the chat template where there is one, or as it stands."""
    if plain or not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(prompt)["input_ids"])
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def both(model: nn.Module, delta: Delta, write: Callable[[], str]) -> tuple[str, str]:
    """What the base writes, and what it writes with the Delta in it."""
    before = write()
    with delta.applied(model):
        return before, write()


def _write(model: nn.Module, tokenizer: Any, ids: list[int], context: int, tokens: int, seed: int | None) -> str:
    (found,) = generate.write(model, tokenizer, [ids], tokens=tokens, context=context, seeds=[seed])
    return found.text


def asked(console: Console) -> Iterator[str]:
    """Prompts from the terminal or from a pipe, one per line, up to an empty one."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            console.print("> ", end="", style="bold")
        line = sys.stdin.readline()
        if not line.strip():
            return
        if not terminal:
            console.print(Text(f"> {line.strip()}", style="bold"))
        yield line.strip()


def side_by_side(before: str, after: str, width: int) -> Table:
    """The two answers beside each other, or one above the other where the terminal is narrow."""
    panels = [
        Panel(Text(text.strip() or "(nothing)"), title=name, title_align="left")
        for name, text in (("base", before), ("unlearned", after))
    ]
    grid = Table.grid(expand=True)
    rows = [panels] if width >= NARROW else [[panel] for panel in panels]
    for _ in rows[0]:
        grid.add_column(ratio=1)
    for row in rows:
        grid.add_row(*row)
    return grid
