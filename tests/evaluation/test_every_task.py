"""Every task that the installed lm-eval holds, up to where its questions would be fetched: how many would run.

python tests/evaluation/test_every_task.py        # counts, with an example of each reason
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any, NoReturn

import pytest

READY = "would run"
REASONS = {  # in the words of the refusals
    "metric": r"needs the metric|Error loading evaluation metrics|find a module script|a metric that is not lm-eval's",
    "package": r"needs a package that is not installed|ends the program while it is loaded|[Pp]lease install",
    "data": r"HF_HUB_OFFLINE|needs is not there|cannot be loaded",
    "code": r"runs code that the model writes",
    "images or sounds": r"asks about images or sounds",
    "lm-eval's own fault": r"has no function",
}


class Ready(BaseException):
    """All before the questions went well; no `except Exception` on the way takes it."""


def ready(task: Any, *_: object, **__: object) -> NoReturn:
    from lm_eval.filters import build_filter_ensemble

    from rmu_exp.evaluation import catalogue

    catalogue.refuse_kind(task.config.task, task)
    for made in task.config.filter_list or ():
        steps = [[step["function"], {k: v for k, v in step.items() if k != "function"}] for step in made["filter"]]
        build_filter_ensemble(made["name"], steps)
    raise Ready


def walk() -> dict[str, str]:
    """Each task of lm-eval's index to what it is refused with, or :data:`READY`."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    from rmu_exp.evaluation import catalogue

    setattr(ConfigurableTask, "download", ready)  # noqa: B010
    with catalogue.quiet():
        manager = TaskManager()
    tasks, found = catalogue.Tasks(manager, {}), dict[str, str]()
    for name in manager.all_subtasks:
        try:
            with catalogue.loading([name]):
                tasks.load([name])
            found[name] = "never asked for its questions"
        except Ready:
            found[name] = READY
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def counted(found: dict[str, str]) -> dict[str, list[str]]:
    """READY, the reasons and what has none of them, to the tasks."""
    by_reason: dict[str, list[str]] = {}
    for name, said in found.items():
        known = [reason for reason, words in REASONS.items() if re.search(words, said)]
        by_reason.setdefault(said if said == READY or not known else known[0], []).append(name)
    return by_reason


@pytest.mark.slow
def test_all_would_run_but_those_that_lack_a_package_or_are_refused() -> None:
    away = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    done = subprocess.run([sys.executable, __file__, "--json"], env=os.environ | away, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    counts = Counter({reason: len(names) for reason, names in counted(found).items()})
    print(counts)
    assert set(counts) <= {READY, *REASONS}
    assert counts[READY] > 0.97 * counts.total()
    assert min(counts["code"], counts["images or sounds"]) > 0
    assert found["mmlu_virology"] == found["gsm8k"] == found["winogrande"] == READY


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    walked = walk()
    if "--json" in sys.argv:
        print("\n" + json.dumps(walked))
    else:
        for reason, names in sorted(counted(walked).items(), key=lambda pair: -len(pair[1])):
            print(f"{len(names):7,}  {reason}: {walked[names[0]]}" if reason != READY else f"{len(names):7,}  {READY}")
