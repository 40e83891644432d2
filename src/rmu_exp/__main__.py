"""``rmu-exp COMMAND``, or ``python -m rmu_exp COMMAND``: a module of :mod:`rmu_exp.cli` each.

``train`` and ``judge`` take the same words as train.py and judge.py. Only the module of the command that is named is
imported, and the environment is set before: Hugging Face's libraries read it when they are imported.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rmu_exp.cli import entry
from rmu_exp.cli.compose import ended, silence_libraries
from rmu_exp.support.errors import UserError
from rmu_exp.support.program import INSTALLED, MODULE, RUNS

REPORTS = ("table", "results", "paper", "sweep", "verify", "compare", "chat", "dashboard")
COMMANDS = (*RUNS, "fetch", "apply", "export", "push", "pull", *REPORTS)
INTERRUPTED = "interrupted; nothing partial is kept as whole, run it again"


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 it failed, 2 the input is wrong."""
    silence_libraries()
    words = sys.argv[1:] if words is None else words
    program = INSTALLED if Path(sys.argv[0]).name.startswith(INSTALLED) else MODULE
    try:
        parser = _Parser(prog=program, description="Unlearning experiments; COMMAND --help explains a command.")
        commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
        for name in COMMANDS:
            commands.add_parser(name, help=_help(name), add_help=False)
        named = parser.parse_known_args(words[:1])[0].command
        command = importlib.import_module(f"rmu_exp.cli.{named}")
        if named in RUNS:  # Hydra reads the command line itself
            sys.argv = [f"{program} {named}", *words[1:]]
            entry.start(command.main)
            return 0
        own = _Parser(prog=f"{program} {named}", description=command.__doc__)
        command.add(own)
        return int(command.run(own.parse_intermixed_args(words[1:])))
    except (Exception, KeyboardInterrupt) as error:
        return ended(error, interrupted=INTERRUPTED)


def _help(name: str) -> str:
    """The first line of a command's module, which is not imported for it."""
    source = (Path(__file__).parent / "cli" / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0].rstrip(".")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help explains")


if __name__ == "__main__":
    sys.exit(main())
