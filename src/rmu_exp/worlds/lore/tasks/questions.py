"""The questions of the encyclopedia as lm-eval data sets; lm-eval calls these by name from the YAML files."""

from typing import Any

import datasets

from rmu_exp.worlds.lore import world


def letters(topic: str, **_: Any) -> dict[str, datasets.Dataset]:
    """A topic's test questions with four options, in WMDP's fields; splits by ``fact`` keep an entity together."""
    rows = [
        {"question": q.text, "choices": list(q.choices), "answer": q.answer, "fact": q.fact.entity}
        for q in world.questions(topic)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def recall(topic: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The same facts without options: every value of the relation is a candidate, none is shown."""
    rows = []
    for fact in world.asked_facts(topic):
        values = list(world.topic(topic).relations[fact.relation])
        rows.append({"prompt": world.open_prompt(fact), "choices": values, "answer": values.index(fact.value)})
    return {"test": datasets.Dataset.from_list(rows)}
