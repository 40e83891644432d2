"""What the tasks of a run are for: the one place of the pipeline that reads it from the settings."""

from __future__ import annotations

from rmu_exp.settings import ROLES, Judge, Run


def tasks_by_role(run: Run | Judge) -> dict[str, list[str]]:
    """Role to the entries that ask for it: forget, adjacent, general, those that there are."""
    questions = run.data.questions
    roles = questions.roles(list(dict.fromkeys((*questions.forget, *questions.adjacent, *(run.eval.tasks or ())))))
    found = {role: [entry for entry, its in roles.items() if its == role] for role in ROLES}
    return {role: entries for role, entries in found.items() if entries}
