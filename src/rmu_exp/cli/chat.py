"""Ask both models of a run or a judgement, side by side.

Type a prompt; base and unlearned model answer. A tokenizer's chat template is used where it has one; --plain has the
models continue the text as it stands. An empty line, Ctrl-D or Ctrl-C ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rmu_exp.pipeline.pair import Pair
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
    pair, console = Pair.of(args.folder, args.base), Console()
    pair.refuse(args.tokens, "--tokens")

    def answer(prompt: str) -> None:
        try:
            before, after = pair.write(prompt, args.tokens, args.seed, args.plain)
        except UserError as error:
            return console.print(str(error), style="dim")
        console.print(side_by_side(before, after, console.width))

    for prompt in args.prompts or asked(console):
        if args.prompts:
            console.print(Text(f"> {prompt}", style="bold"))
        answer(prompt)
    return 0


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
