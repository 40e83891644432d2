"""What the tasks of a run are for: the one place of the pipeline that reads it from the settings."""

from __future__ import annotations

from rmu_exp.report import objectives
from rmu_exp.settings import Judge, Run


def tasks_by_role(run: Run | Judge) -> dict[str, list[str]]:
    """Role to the tasks that are asked for it: forget, adjacent, general, those that there are."""
    found = {"forget": list(run.data.forget_tasks), "adjacent": list(run.data.adjacent_tasks), "general": list[str]()}
    known = {task: role for role, tasks in found.items() for task in tasks}
    for task in run.eval.tasks:
        found[known.get(task) or objectives.role(task)[0] or "general"].append(task)
    return {role: list(dict.fromkeys(tasks)) for role, tasks in found.items() if tasks}
