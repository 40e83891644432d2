"""Unlearn and evaluate: ``python train.py layer=7 steer=6.5``; ``python train.py --help`` explains the keys."""

from rmu_exp.cli import entry, train

if __name__ == "__main__":
    entry.start(train.main)
