"""What surrounds a run: ``python -m rmu_exp fetch | apply | export | table | sweep | verify | compare | dashboard``.

Runs are started by train.py.

Nothing heavy is imported before the command is known: Hugging Face's libraries fix the places of their caches
when they are imported, and ``fetch`` says where those are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rmu_exp.cli import checkpoints, compare_command, dashboard, fetch_command, sweep, table, verify_command
from rmu_exp.support import boundary
from rmu_exp.support.errors import UserError
from rmu_exp.support.redaction import redact


def main(words: Sequence[str] | None = None) -> int:
    """Carry out one command. Returns the exit status: 0 done, 1 it failed, 2 the input is wrong."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # advice to users of other programs; read on import
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        args = _parser().parse_args(words)
        return int(args.run(args) or 0)
    except Exception as error:
        line = boundary.line_for(error)
        if line is None:
            raise
        return _tell(line, 2 if isinstance(line, UserError) else 1)
    except KeyboardInterrupt:
        return _tell("interrupted; nothing partial is kept as whole, run it again", 1)


def _tell(message: object, status: int) -> int:
    print(redact(f"rmu_exp: {message}"), file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help explains")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m rmu_exp", description="What surrounds a run; runs are started by train.py.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (fetch_command, checkpoints, table, sweep, verify_command, compare_command, dashboard):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
