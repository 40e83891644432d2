"""The command lines: train.py and judge.py around Hydra, and the commands of ``python -m rmu_exp``, a module each.

A command's module has ``add``, which gives a parser its arguments, and ``run``; its docstring is its help.
"""
