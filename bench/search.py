"""Is a search worth more than a grid? The fronts of sweeps over the same ranges, by the area that they dominate.

    python bench/search.py GRID_FOLDER SEARCH_FOLDER...

The area lies between a front and the corner where everything is still known and all else is lost (forget accuracy 1,
general accuracy 0); the greatest possible is 1 less chance. docs/sweeps.md has the commands that make the folders.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rmu_exp.report import objectives
from rmu_exp.sweep import front, trials

CORNER = (1.0, 0.0)  # costs: forget accuracy, less general accuracy


def area(folder: Path) -> tuple[int, int, float]:
    """How many trials a sweep has, how many are on its front, and the area that they dominate."""
    found = trials.read(folder)
    chosen = objectives.choose(("forget", "general"), [t.results for t in found if t.state == "done"])
    points = list(front.costs(found, chosen).values())
    return len(points), len(front.front(points)), front.hypervolume(points, CORNER)


def main(folders: list[str]) -> None:
    """A line a folder; searches also as a ratio to the first."""
    first = None
    for name in folders:
        count, best, volume = area(Path(name))
        first = volume if first is None else first
        print(f"{name}: {count} trials, {best} on the front, area {volume:.4f} ({volume / first:.3f} of the first)")


if __name__ == "__main__":
    main(sys.argv[1:])
