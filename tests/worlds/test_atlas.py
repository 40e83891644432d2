"""What atlas promises about its tables, questions and texts."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from rmu_exp import worlds
from rmu_exp.worlds import atlas

FOLDER = files("rmu_exp.worlds.atlas")
ROLES = {
    "forget": ("elements", "capitals"),
    "adjacent": ("science", "places"),
    "general": ("nature", "words", "people"),
}
spec = importlib.util.spec_from_file_location("maker", Path(__file__).parents[2] / "bench/atlas.py")
maker = importlib.util.module_from_spec(spec)
sys.modules["maker"] = maker  # dataclasses look their module up
spec.loader.exec_module(maker)
RELATIONS = [relation.name for relation in maker.RELATIONS]


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


QUESTIONS = lines("tasks/questions.jsonl")


def about(**fields: object) -> list[dict]:
    return [q for q in QUESTIONS if fields.items() <= q.items()]


def test_files_are_what_the_command_writes():
    assert list(maker.questions()) == QUESTIONS
    for topic in ROLES["forget"]:
        assert maker.forget_texts(topic) == lines(f"texts/{topic}.jsonl")


def test_there_are_enough_questions_and_relations():
    assert {role: {q["topic"] for q in about(role=role)} for role in ROLES} == {r: set(t) for r, t in ROLES.items()}
    assert len(RELATIONS) >= 8
    for role in ROLES:
        assert len(about(role=role)) >= 200
    for topic in ROLES["forget"]:
        assert len(about(topic=topic)) >= 100


@pytest.mark.parametrize("relation", RELATIONS)
def test_how_often_and_where_an_option_stands_says_nothing(relation):
    asked = about(relation=relation)
    places = Counter(q["answer"] for q in asked)
    assert max(places.values()) - min(places[i] for i in range(4)) <= 1
    seen = Counter(option for q in asked for option in q["choices"])
    right = Counter(q["choices"][q["answer"]] for q in asked)
    assert seen == {value: 4 * count for value, count in right.items()}
    assert all(len(set(q["choices"])) == 4 for q in asked)
    assert max(right.values()) <= max(1, len(asked) // 5 + 1)


@pytest.mark.parametrize("relation", maker.RELATIONS, ids=RELATIONS)
def test_a_question_has_one_right_option(relation):
    true = defaultdict(set)
    for row in maker.table(relation.table):
        true[maker.named(row[relation.given], relation)].add(maker.the(row[relation.asked]).lower())
    given = {fact.name: fact.given for fact in maker.facts(relation)}
    for q in about(relation=relation.name):
        found = {option for option in q["choices"] if option.lower() in true[given[q["fact"]]]}
        assert found == {q["choices"][q["answer"]]}
        for row in maker.table("near"):
            if row["relation"] == relation.name and q["choices"][q["answer"]] in row["values"].split("|"):
                assert len(set(q["choices"]) & set(row["values"].split("|"))) == 1


def test_rules_without_knowledge_are_near_chance():
    given = {(r.name, fact.name): fact.given for r in maker.RELATIONS for fact in maker.facts(r)}
    asked = [{**q, "given": given[q["relation"], q["fact"]]} for q in QUESTIONS]
    for relation in RELATIONS:
        reached = maker.rules([q for q in asked if q["relation"] == relation])
        assert max(reached.values()) <= 0.4, (relation, reached)
    for role in ROLES:
        reached = maker.rules([q for q in asked if q["role"] == role])
        assert max(reached.values()) <= 0.31, (role, reached)


def test_halves_and_thirds_are_dealt_evenly():
    for relation in RELATIONS:
        halves = Counter(q["half"] for q in about(relation=relation))
        assert abs(halves["choose"] - halves["report"]) <= 0.2 * sum(halves.values())
    for topic in ROLES["forget"]:
        for half in ("choose", "report"):
            asked = about(topic=topic, half=half)
            assert 0.28 <= sum(q["held_out"] for q in asked) / len(asked) <= 0.39
        sides = {(q["entity"], q["half"], q["held_out"]) for q in about(topic=topic)}
        assert len(sides) == len({entity for entity, _, _ in sides})
    assert not any(q["held_out"] for q in QUESTIONS if q["role"] != "forget")


@pytest.mark.parametrize("topic", ROLES["forget"])
def test_forget_texts_tell_of_all_entities_but_those_held_out(topic):
    named = set().union(*(maker.named_in(text) for text in atlas.texts(topic)))
    assert not {q["entity"] for q in about(role="forget", held_out=True)} & named
    assert {q["entity"] for q in about(topic=topic, held_out=False)} <= named
    values = {q["choices"][q["answer"]] for q in about(relation="capital", held_out=True)}
    assert not values & named


@pytest.mark.parametrize("corpus", ["retain", "neutral"])
def test_other_texts_tell_no_fact_that_is_asked(corpus):
    for text in atlas.texts(corpus):
        assert maker.may_stand(corpus, text), text


def test_what_may_stand_in_a_corpus():
    hidden = next(q["entity"] for q in about(relation="capital", held_out=True))
    assert not maker.may_stand("capitals", f"A journey through {hidden} takes a week.")
    assert maker.may_stand("retain", f"A journey through {hidden} takes a week.")
    assert not maker.may_stand("retain", "Rails are made of iron.")
    opposite = about(relation="opposite")[0]
    assert not maker.may_stand("retain", f"{opposite['statement']} {opposite['choices'][opposite['answer']]}.")
    assert not maker.may_stand("retain", "Where is the ferry?")
    assert maker.named_in("The forests of Papua New Guinea") == {"Papua New Guinea"}


def test_no_text_holds_a_question_and_corpora_share_none():
    every = [text for corpus in atlas.CORPORA for text in atlas.texts(corpus)]
    assert len(set(every)) == len(every)
    joined = "\n".join(maker.plain(text) for text in every)
    assert not any(maker.plain(q["question"]) in joined for q in QUESTIONS)
    assert not any(mark in text for text in every for mark in ("?", "Question:", "Answer:"))
    assert len(atlas.texts("neutral")) >= 100


def test_the_world_is_small():
    sizes = [path.stat().st_size for path in Path(str(FOLDER)).rglob("*") if path.suffix != ".pyc" and path.is_file()]
    assert sum(sizes) <= 1_000_000


def test_every_topic_is_a_task_in_both_forms():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(folder) for folder in worlds.task_folders()], include_defaults=False)
    for kind, form in (("", "Question: {question}\nAnswer: {lead}"), ("open_", "{statement}")):
        for role, topics in ROLES.items():
            tasks = manager.load(f"atlas_{kind}{role}")["tasks"]
            assert [name.rpartition("_")[2] for name in tasks] == list(topics)
            for topic, task in zip(topics, tasks.values(), strict=True):
                docs = list(task.dataset["test"])
                assert docs == about(role=role, topic=topic)
                assert task.doc_to_text(docs[0]) == form.format(**docs[0])
                assert task.doc_to_choice(docs[0]) == docs[0]["choices"]
                assert task.doc_to_target(docs[0]) == docs[0]["answer"]


def test_an_unknown_corpus_is_named():
    with pytest.raises(KeyError, match="elements, capitals, retain, neutral"):
        atlas.texts("weather")


@pytest.mark.parametrize("table", sorted(path.name for path in (Path(str(FOLDER)) / "tables").glob("*.tsv")))
def test_every_table_is_well_formed_and_has_its_source(table):
    assert f"`{table}`" in (FOLDER / "tables/SOURCES.md").read_text(encoding="utf-8")
    rows = maker.table(table.removesuffix(".tsv"))
    assert all(None not in row and None not in row.values() for row in rows)
    assert all(value == value.strip() for row in rows for value in row.values())
    assert len({tuple(row.values()) for row in rows}) == len(rows)
