"""How a step's cost grows: one size changed at a time, rmu_exp's loop and the two-full-models loop.

    python bench/growth.py

Prints counted operations of both, and the CPU seconds of one step of each (OMP_NUM_THREADS=1 makes these the work
done). Sizes are small, so that the table takes half a minute; options as bench/step.py change what it starts from.
"""

from __future__ import annotations

import copy
import sys
from functools import partial

import step

SMALL = {"hidden": 128, "vocab": 2000, "length": 64, "rounds": 1}
CHANGES = [
    ("as it is", {}),
    ("layer 3", {"layer": 3}),
    ("layer 15", {"layer": 15}),
    ("width 256", {"hidden": 256}),
    ("depth 16", {"layers": 16}),
    ("depth 64", {"layers": 64}),
    ("length 128", {"length": 128}),
    ("length 256", {"length": 256}),
    ("batch 8", {"batch": 8}),
]


def main() -> None:
    start = step.arguments()
    for key, value in SMALL.items():
        if not any(word.startswith(f"--{key}") for word in sys.argv):
            setattr(start, key, value)
    print(f"layer {start.layer}, width {start.hidden}, depth {start.layers}, {start.batch} × {start.length} tokens")
    print(f"{'':12} {'GFLOP ours':>12} {'theirs':>8} {'ratio':>6}   {'CPU s ours':>10} {'theirs':>8} {'ratio':>6}")
    for name, changes in CHANGES:
        args = copy.copy(start)
        for key, value in changes.items():
            setattr(args, key, value)
        warm, timed = step.rounds(args)
        counted, took = [], []
        for loop in (step.Ours(args), step.Theirs(args)):
            counted.append(step.counted(loop.run, warm) / 1e9)
            took.append(step.seconds(partial(loop.run, timed), args.device).cpu)
        print(
            f"{name:12} {counted[0]:12.2f} {counted[1]:8.2f} {counted[1] / counted[0]:5.1f}x"
            f"   {took[0]:10.3f} {took[1]:8.3f} {took[1] / took[0]:5.1f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
