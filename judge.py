"""Judge a model that exists: ``python judge.py base=… unlearned=… attacks=all``; ``--help`` explains the keys."""

from rmu_exp.cli import entry, judge

if __name__ == "__main__":
    entry.start(judge.main)
