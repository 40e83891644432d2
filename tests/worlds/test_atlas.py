"""What atlas promises about its tables, questions and texts."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from rmu_exp.worlds.atlas import world, write

ROLES = ("forget", "adjacent", "general")
TOPICS = ("elements", "capitals")
CORPORA = (*TOPICS, "retain", "neutral")
FOLDER = files("rmu_exp.worlds.atlas")


def questions(role: str) -> list[world.Question]:
    return [q for r in world.RELATIONS if r.role == role for q in world.questions(r.name)]


def words_of(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def names_in(texts: list[str], names: list[str]) -> set[str]:
    """Which names stand in the texts as whole words; a name within a longer one, as in South Sudan, does not count."""
    spelled = {f" {words_of(name)} ": name for name in sorted(names, key=len, reverse=True)}
    joined = "".join(f" {words_of(text)} \n" for text in texts)
    found = set()
    for words, name in spelled.items():
        if words in joined:
            found.add(name)
            joined = joined.replace(words, " | ")
    return found


@pytest.mark.parametrize("name", sorted({r.table for r in world.RELATIONS}))
def test_tables_are_well_formed(name):
    rows = world.table(name)
    keys = [next(iter(row.values())) for row in rows]
    assert len(set(keys)) == len(keys)
    for row in rows:
        assert None not in row
        assert all(value == value.strip() and value is not None for value in row.values())


def test_there_are_enough_questions_and_relations():
    assert len(world.RELATIONS) >= 8
    assert len({r.name for r in world.RELATIONS}) == len(world.RELATIONS)
    for role in ROLES:
        assert len(questions(role)) >= 200
    per_topic = Counter(q.fact.relation.topic for q in questions("forget"))
    assert set(per_topic) == set(TOPICS)
    assert min(per_topic.values()) >= 100


@pytest.mark.parametrize("relation", [r.name for r in world.RELATIONS])
def test_options_are_four_different_values_of_one_column(relation):
    asked = world.questions(relation)
    values = {fact.value for fact in world.facts(relation)}
    for q in asked:
        assert q.choices[q.answer] == q.fact.value
        assert len(set(q.choices)) == 4
        assert set(q.choices) <= values
    places = Counter(q.answer for q in asked)
    assert max(places.values()) - min(places[i] for i in range(4)) <= 1


@pytest.mark.parametrize("relation", [r.name for r in world.RELATIONS])
def test_a_question_has_one_right_option(relation):
    right: dict[str, set[str]] = {}
    for fact in world.facts(relation):
        right.setdefault(fact.given, set()).add(fact.value)
    for q in world.questions(relation):
        assert right[q.fact.given] & set(q.choices) == {q.fact.value}


def test_a_country_is_not_named_in_its_capital():
    for fact in world.facts("capital"):
        assert fact.given not in fact.value
        assert fact.value not in fact.given


@pytest.mark.parametrize("topic", TOPICS)
def test_a_third_of_the_forget_entities_are_in_no_forget_text(topic):
    entities = {q.fact.entity for q in questions("forget") if q.fact.relation.topic == topic}
    hidden = world.held_out(topic) & entities
    assert 0.3 <= len(hidden) / len(entities) <= 0.37
    capitals = {fact.value for fact in world.facts("capital")}  # Port of Spain tells nothing of Spain
    found = names_in([text for name in TOPICS for text in write.texts(name)], sorted(entities | capitals)) - capitals
    assert not found & hidden
    assert entities - hidden == found


def test_held_out_values_are_in_no_forget_text():
    hidden = [f.value for f in world.facts("capital") if world.is_held_out(f)]
    assert not names_in(write.texts("capitals"), [f.value for f in world.facts("capital")]) & set(hidden)


@pytest.mark.parametrize("corpus", CORPORA)
def test_no_text_holds_a_question(corpus):
    joined = "\n".join(words_of(text) for text in write.texts(corpus))
    for role in ROLES:
        for q in questions(role):
            assert words_of(q.text) not in joined
    assert not any(mark in text for text in write.texts(corpus) for mark in ("?", "Question:", "Answer:"))


@pytest.mark.parametrize("corpus", ["retain", "neutral"])
def test_no_retain_text_tells_a_fact_that_is_asked(corpus):
    texts = [f" {words_of(sentence)} " for text in write.texts(corpus) for sentence in re.split(r"[.;] ", text)]
    for role in ROLES:
        for q in questions(role):
            given, value = f" {words_of(q.fact.given)} ", f" {words_of(q.fact.value)} "
            if q.fact.relation.name == "opposite":  # words of every day, told only side by side
                given, value = f" words{given}and", f"and{value}"
            assert not any(given in text and value in text for text in texts), q.text


def test_neutral_texts_are_held_out_and_enough():
    neutral = write.texts("neutral")
    assert len(set(neutral)) >= 128
    assert not set(neutral) & {text for name in (*TOPICS, "retain") for text in write.texts(name)}


def test_files_are_what_the_command_writes_and_small():
    sizes = 0
    for name in CORPORA:
        file = FOLDER / "texts" / f"{name}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines()
        sizes += len(file.read_bytes())
        assert [json.loads(line)["text"] for line in lines] == write.texts(name)
    assert sizes <= 1_000_000


def test_every_relation_is_a_task_and_every_task_in_its_group():
    import yaml

    for kind in ("", "open_"):
        for role in ROLES:
            group = yaml.safe_load((FOLDER / "tasks" / f"atlas_{kind}{role}.yaml").read_text())
            leaves: list[str] = []
            for name in group["task"]:
                inner = yaml.safe_load((FOLDER / "tasks" / f"{name}.yaml").read_text())
                leaves += inner["task"] if "group" in inner else [name]
            assert leaves == [f"atlas_{kind}{role}_{r.name}" for r in world.RELATIONS if r.role == role]


@pytest.mark.parametrize("table", sorted({r.table for r in world.RELATIONS}))
def test_every_table_has_its_source(table):
    assert f"`{table}.tsv`" in (FOLDER / "tables" / "SOURCES.md").read_text()
