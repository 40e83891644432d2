"""Every task that the installed lm-eval holds, up to where its questions would be fetched: how many would run.

python -m pytest -m slow -s tests/evaluate/test_every_task.py     # prints the table that docs/data.md has
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NoReturn

import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.filters import build_filter_ensemble
from lm_eval.tasks import TaskManager

from rmu_exp.evaluate import catalogue
from rmu_exp.support.errors import UserError


class Ready(BaseException):
    """All before the questions went well; no `except Exception` on the way takes it."""


def ready(task: Any, *_: object, **__: object) -> NoReturn:
    catalogue.refuse_kind(task.config.task, task)
    for made in task.config.filter_list or ():
        steps = [[step["function"], {k: v for k, v in step.items() if k != "function"}] for step in made["filter"]]
        build_filter_ensemble(made["name"], steps)
    raise Ready


@pytest.mark.slow
def test_all_would_run_but_those_that_lack_a_package_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfigurableTask, "download", ready)
    with catalogue.quiet():
        manager = TaskManager()
    tasks = catalogue.Tasks(manager, {})
    why: dict[str, str] = {}
    for name in manager.all_subtasks:
        try:
            with catalogue.loading([name]):
                tasks.load([name])
            why[name] = "no questions wanted"
        except Ready:
            why[name] = "ready"
        except Exception as error:
            why[name] = type(error).__name__ + " " + str(error).replace(name, "…")
    import json

    json.dump(why, open("/tmp/ask/why.json", "w"), indent=1)
    print()
    for reason, count in Counter(why.values()).most_common():
        print(f"{count:7,}  {reason}")
