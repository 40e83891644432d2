"""The questions of atlas as lm-eval data sets; lm-eval calls this by name from the YAML files."""

import datasets

from rmu_exp.worlds.atlas import world


def of(relation: str, **_: object) -> dict[str, datasets.Dataset]:
    """A relation's questions.

    Splits by ``fact`` keep an entity's questions together; ``held_out`` says that no forget text names it, ``half``
    whether it serves to choose settings or to report results; ``statement`` is the open form.
    """
    rows = [
        {
            "question": q.text,
            "statement": q.statement,
            "choices": list(q.choices),
            "answer": q.answer,
            "fact": q.fact.entity,
            "relation": relation,
            "topic": q.fact.relation.topic,
            "held_out": world.is_held_out(q.fact),
            "half": world.half(q.fact),
        }
        for q in world.questions(relation)
    ]
    return {"test": datasets.Dataset.from_list(rows)}
