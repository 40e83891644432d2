"""rmu_exp: representation misdirection for unlearning, from one command line to a judged result.

``from rmu_exp import attack, evaluate, load, unlearn`` is the same from Python: :mod:`rmu_exp.api`.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["Unlearned", "attack", "evaluate", "load", "unlearn"]


def __getattr__(name: str) -> object:
    """What is offered to Python, loaded when it is asked for: the command line's first words need no torch."""
    if name in __all__:
        import_module("rmu_exp.cli.compose").silence_libraries()
        return getattr(import_module("rmu_exp.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
