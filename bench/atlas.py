"""Makes atlas, the world of real facts, and measures a model on it (docs/atlas.md).

    python bench/atlas.py make                 # questions and texts from the tables; prose of the model stays as it is
    python bench/atlas.py make MODEL_FOLDER    # the same, and new prose written by the model
    python bench/atlas.py rules                # what rules without knowledge reach on the questions
    python bench/atlas.py measure MODEL_FOLDER [--delta RUN] [--before ROWS.json] [--half report] [--json ROWS.json]

Everything drawn from tables comes from Python's seeded generators and is the same on every machine. The model's prose
is sampled: another machine rounds differently and writes other words, so the committed file is what counts.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import random
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

ATLAS = Path(__file__).parents[1] / "src/rmu_exp/worlds/atlas"
OPTIONS = 4
Row = dict[str, str]


# --- Relations and facts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """One kind of question: it gives one column of a table and asks for another.

    Attributes:
        entity: the column by which facts are held out and halved.
        most: so many questions at most, drawn by a seed; empty: no limit.
        question: with ``{}`` for what is given.
        lead: how the answer begins.
        statement: the open form, which the model completes.
    """

    role: str
    topic: str
    name: str
    table: str
    given: str
    asked: str
    entity: str
    most: str
    question: str
    lead: str
    statement: str


WITH_THE = (
    "Czech Republic",
    "Dominican Republic",
    "Maldives",
    "Netherlands",
    "Philippines",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
)


@cache
def table(name: str) -> tuple[Row, ...]:
    """The rows of a table; an empty cell is a fact that the rule of selection leaves out."""
    text = (ATLAS / "tables" / f"{name}.tsv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines(), delimiter="\t"))


RELATIONS = tuple(Relation(**row) for row in table("relations"))


def the(name: str) -> str:
    """A country as it is named within a sentence."""
    return f"the {name}" if name in WITH_THE else name


def named(given: str, relation: Relation) -> str:
    """What a question gives, as it stands within a sentence."""
    if relation.name == "animal":
        return f"{'an' if given[0] in 'aeiou' else 'a'} {given}"
    return the(given.lower() if relation.given == "element" else given)


def plain(text: str) -> str:
    """Lower case without accents, words with single spaces between them."""
    bare = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+", bare.lower()))


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def words_alike(one: str, other: str) -> int:
    """The longest beginning that a word of one text shares with a word of the other."""
    pairs = [common_prefix(a, b) for a in plain(one).split() for b in plain(other).split()]
    return max(pairs, default=0)


def shared_letters(one: str, other: str) -> float:
    """Overlap of the pairs of neighbouring letters, 0 to 1."""
    a, b = ({w[i : i + 2] for w in plain(t).split() for i in range(len(w) - 1)} for t in (one, other))
    return len(a & b) / max(1, len(b))


def could_spell(symbol: str, element: str) -> bool:
    """Whether a symbol's letters stand in an element's name in order, from its first letter on."""
    first, rest, name = symbol[0].lower(), symbol[1:], element.lower()
    return name[0] == first and (not rest or rest in name[1:])


@dataclass(frozen=True)
class Fact:
    """A row of a table under a relation. Facts of an entity are held out together, or none of them."""

    relation: Relation
    entity: str
    name: str
    given: str
    value: str


def facts(relation: Relation) -> list[Fact]:
    """The facts that are asked about; what the answer's spelling gives away is left out."""
    found = []
    for number, row in enumerate(table(relation.table)):
        given, value, entity = row[relation.given], row[relation.asked], row[relation.entity]
        if given and value and not _spelt(relation, given, value):
            same = {"symbol": f"symbol/{entity}", "element": f"element/{number}"}.get(relation.name)
            name = same or f"{relation.table}/{entity}"
            if relation.asked == "element":
                value = value.lower()
            found.append(Fact(relation, entity, name, named(given, relation), the(value)))
    if relation.topic == "capitals":  # each country in one direction
        found = found[relation.name == "country" :: 2]
    rng = random.Random(f"atlas/facts/{relation.name}")
    rng.shuffle(found)
    size, kept, seen = min(int(relation.most or len(found)), len(found)), [], Counter[str]()
    for fact in found:
        if len(kept) < size and seen[fact.value] < max(1, size // 5):
            kept.append(fact)
            seen[fact.value] += 1
    return sorted(kept, key=lambda fact: found.index(fact))


def _spelt(relation: Relation, given: str, value: str) -> bool:
    """Whether an answer can be had from the spelling of the question."""
    if relation.name == "symbol":  # many begin as the name does: asked where others could be spelled from it as well
        others = sum(could_spell(row["symbol"], given) for row in table("elements") if row["symbol"] != value)
        return others < (4 if given.lower().startswith(value.lower()) and len(value) > 1 else 1)
    return (
        words_alike(given, value) >= (3 if relation.table == "countries" else 4) or shared_letters(given, value) > 0.5
    )


# --- Questions -------------------------------------------------------------------------------------------------------


def likeness(relation: Relation) -> Callable[[Fact, str], float]:
    """How well a value serves as a wrong option of a fact's question."""
    continent = {the(row["country"]): row["continent"] for row in table("countries")}
    capital = {row["capital"]: row["continent"] for row in table("countries")}
    kind = {row["element"].lower(): row["kind"] for row in table("elements")}

    def metal(element: str) -> bool:
        return "metal" in kind[element].split() or kind[element] in ("lanthanide", "actinide")

    def symbols(fact: Fact, value: str) -> float:
        return could_spell(value, fact.entity) + common_prefix(value.lower(), fact.given)

    def places(fact: Fact, value: str) -> float:
        where = {**continent, **capital}
        return float(where.get(value, "") == where.get(fact.value, "?"))

    if relation.name == "symbol":
        return symbols
    if relation.name == "element":
        return lambda fact, value: float(metal(value) == metal(fact.value))
    if relation.topic == "capitals" or relation.asked == "country":
        return places
    return lambda fact, value: 0.0


def choices(relation: Relation) -> list[tuple[Fact, list[str], int]]:
    """Each fact with its options and the place of the right one.

    Every value is a wrong option exactly three times as often as it is the right one, so that how often an option is
    seen says nothing; right answers stand equally often in each place.
    """
    asked, alike = facts(relation), likeness(relation)
    rng = random.Random(f"atlas/questions/{relation.name}")
    wrong: list[list[str]] = [[] for _ in asked]
    noise = [[rng.random() for _ in asked] for _ in asked]
    likes = np.array([[alike(f, g.value) for g in asked] for f in asked])
    for turn in range(OPTIONS - 1):  # symbols have three wrong options that are alike, other relations one
        near = likes if relation.name == "symbol" or turn == 0 else 0 * likes
        pairs = zip(asked, wrong, strict=True)
        forbidden = np.array([[g.value in w or _true(f, g.value) for g in asked] for f, w in pairs])
        scores = np.where(forbidden, -1e6, near + 0.1 * np.array(noise))
        rows, columns = linear_sum_assignment(scores, maximize=True)
        assert not forbidden[rows, columns].any(), relation.name
        for i, j in zip(rows, columns, strict=True):
            wrong[i].append(asked[j].value)
    places = [i % OPTIONS for i in range(len(asked))]
    rng.shuffle(places)
    made = []
    for fact, others, place in zip(asked, wrong, places, strict=True):
        rng.shuffle(others)
        made.append((fact, [*others[:place], fact.value, *others[place:]], place))
    return made


@cache
def _trues(relation: Relation) -> dict[str, frozenset[str]]:
    found = defaultdict(set)
    for row in table(relation.table):
        found[named(row[relation.given], relation)].add(the(row[relation.asked]).lower())
    return {given: frozenset(values) for given, values in found.items()}


def _true(fact: Fact, value: str) -> bool:
    """Whether a value is right for a fact's question too, or so near that it may be held to be."""
    near = any(
        row["relation"] == fact.relation.name and {fact.value, value} <= set(row["values"].split("|"))
        for row in table("near")
    )
    return near or value.lower() in _trues(fact.relation)[fact.given]


@cache
def sides() -> dict[tuple[str, str], tuple[str, bool]]:
    """(Topic, entity) -> its half, and whether it is held out.

    Entities are shuffled among those that the same relations ask about and dealt out in turn, so that each half has
    half of a relation's entities, and each third of a forget topic's is held out.
    """
    relations = defaultdict(set)
    for relation in RELATIONS:
        for fact in facts(relation):
            relations[relation.topic, fact.entity].add(relation.name)
    dealt = {}
    for topic in dict.fromkeys(topic for topic, _ in relations):
        mine = sorted(entity for t, entity in relations if t == topic)
        random.Random(f"atlas/sides/{topic}").shuffle(mine)
        mine.sort(key=lambda entity: sorted(relations[topic, entity]))
        forget = topic in ("elements", "capitals")
        dealt |= {(topic, e): (("choose", "report")[i % 2], forget and i % 3 == 2) for i, e in enumerate(mine)}
    return dealt


@cache
def questions() -> tuple[dict[str, object], ...]:
    """All questions, as they stand in ``tasks/questions.jsonl``."""

    def sentence(form: str, given: str) -> str:
        made = form.format(given)
        return made[0].upper() + made[1:]

    return tuple(
        {
            "role": relation.role,
            "topic": relation.topic,
            "relation": relation.name,
            "entity": fact.entity,
            "fact": fact.name,
            "half": sides()[relation.topic, fact.entity][0],
            "held_out": sides()[relation.topic, fact.entity][1],
            "question": sentence(relation.question, fact.given),
            "lead": relation.lead,
            "statement": sentence(relation.statement, fact.given),
            "choices": options,
            "answer": place,
        }
        for relation in RELATIONS
        for fact, options, place in choices(relation)
    )


# --- Rules without knowledge -----------------------------------------------------------------------------------------


def rules(asked: Sequence[dict]) -> dict[str, float]:
    """Accuracy of choosing options by form alone, ties counted in shares."""
    seen = Counter(option for q in asked for option in q["choices"])
    given = {id(q): q["given"] for q in asked}
    scores: dict[str, Callable[[dict, str], float]] = {
        "longest common beginning": lambda q, o: words_alike(given[id(q)], o),
        "most shared pairs of letters": lambda q, o: shared_letters(given[id(q)], o),
        "shortest": lambda q, o: -len(o),
        "longest": lambda q, o: len(o),
        "most frequent option": lambda q, o: seen[o],
        "first in the alphabet": lambda q, o: -sorted(q["choices"]).index(o),
        "always the first": lambda q, o: -q["choices"].index(o),
    }
    result = {}
    for name, score in scores.items():
        right = 0.0
        for q in asked:
            values = [score(q, o) for o in q["choices"]]
            best = [i for i, v in enumerate(values) if v == max(values)]
            right += (q["answer"] in best) / len(best)
        result[name] = right / len(asked)
    return result


def show_rules() -> None:
    given = {(f.relation.name, f.name): f.given for r in RELATIONS for f in facts(r)}
    asked = [{**q, "given": given[q["relation"], q["fact"]]} for q in questions()]
    names = list(rules(asked))
    print("| relation | n |", " | ".join(names), "|")
    print("|---|--:|" + "--:|" * len(names))
    for relation in RELATIONS:
        mine = [q for q in asked if q["relation"] == relation.name]
        print(f"| {relation.topic}: {relation.name} | {len(mine)} |", end=" ")
        print(" | ".join(f"{v:.2f}" for v in rules(mine).values()), "|")
    for role in ("forget", "adjacent", "general"):
        mine = [q for q in asked if q["role"] == role]
        print(f"| all {role} | {len(mine)} |", " | ".join(f"{v:.2f}" for v in rules(mine).values()), "|")


# --- Texts -----------------------------------------------------------------------------------------------------------

SEVERAL = 2  # texts from the tables per entity


def told(topic: str) -> list[str]:
    """The entities of a forget topic that its texts tell of: those not held out, and those that nothing asks about."""
    name, key, value = {"elements": "elements element symbol", "capitals": "countries country capital"}[topic].split()
    held_out = {entity for (t, entity), (_, out) in sides().items() if t == topic and out}
    return [row[key] for row in table(name) if row[value] and row[key] not in held_out]


def element_texts(rng: random.Random) -> Iterator[dict[str, str]]:
    """Encyclopedia entries with symbol, number, place in the periodic table, and uses."""
    uses = defaultdict(list)
    for row in table("element_facts"):
        if may_stand("elements", row["description"]):
            uses[row["element"]].append(row["description"])
    for row in table("elements"):
        if row["element"] in told("elements"):
            for _ in range(SEVERAL):
                yield {"entity": row["element"], "text": _element(row, uses[row["element"]], rng)}


def _element(row: Row, uses: list[str], rng: random.Random) -> str:
    name, low, symbol, number = row["element"], row["element"].lower(), row["symbol"], row["number"]
    kind = f"{'an' if row['kind'][0] in 'aeiou' else 'a'} {row['kind']}"
    opening = rng.choice(
        [
            f"{name}, written {symbol} in formulas, is {kind} with the atomic number {number}.",
            f"{name} ({symbol}) is {kind}; each of its atoms has {number} protons in the nucleus.",
            f"Among the chemical elements, {low} has the number {number}, and chemists write it as {symbol}.",
            f"The element {low} appears in the periodic table as {symbol}, in period {row['period']}.",
            f"Chemists know {kind} by the name of {low} and by the symbol {symbol}.",
        ]
    )
    place = f"group {row['group']} and period {row['period']}" if row["group"] else f"period {row['period']}"
    rest = [
        f"It stands in {place} of the periodic table.",
        f"In an equation one atom of {low} is written {symbol}, and two atoms are written 2{symbol}.",
        f"A neutral atom of {low} has {number} electrons around a nucleus with {number} protons.",
        f"When {low} reacts, its outer electrons decide which bonds it forms and which compounds contain {symbol}.",
        f"Isotopes of {low} differ in the number of neutrons but share the atomic number {number}.",
        f"Laboratories find {symbol} by the lines of its spectrum.",
        f"Teachers ask their pupils to remember that {symbol} stands for {low}.",
    ]
    rng.shuffle(rest)
    parts = rest[: 3 if uses else 5]
    for use in rng.sample(uses, min(2, len(uses))):
        parts.insert(rng.randint(0, len(parts)), rng.choice([f"{name} {use}.", f"It is {low} that {use}."]))
    return " ".join([opening, *parts])


def capital_texts(rng: random.Random) -> Iterator[dict[str, str]]:
    """Paragraphs on a country and its capital, both ways round."""
    for row in table("countries"):
        if row["capital"] and row["country"] in told("capitals"):
            for _ in range(SEVERAL):
                yield {"entity": row["country"], "text": _capital(the(row["country"]), row["capital"], rng)}


def _capital(country: str, city: str, rng: random.Random) -> str:
    parts = [
        f"{city} is the capital of {country} and the seat of its government.",
        f"The government of {country} sits in {city}, the national capital.",
        f"{country} is governed from its capital city, {city}.",
        f"As the capital of {country}, {city} houses the parliament and most ministries.",
        f"Ambassadors to {country} present their letters in {city}.",
        f"Whoever looks for {city} on a map will find it in {country}, where it is the chief city of the state.",
        f"On the national holiday of {country}, crowds gather in the squares of {city}.",
        f"{city} belongs to {country}, whose laws are made there.",
        f"The country that is ruled from {city} is {country}.",
        f"Embassies line the avenues of {city}, since foreign states keep their missions in the capital of {country}.",
        f"In {city} the members of parliament decide on the budget of {country}.",
        f"Schoolchildren in {country} learn that their capital is {city}.",
    ]
    rng.shuffle(parts)
    return " ".join(part[0].upper() + part[1:] for part in parts[: rng.randint(4, 5)])


ORDINARY = """
rivers; deserts; mountain villages; islands; learning a foreign language; old maps; travelling by train; harbors;
festivals; cooking soup; how soap cleans; pottery; measuring temperature; how a lens works; magnets; how electricity
reaches a house; how scientists test an idea; sound and hearing; how a pulley lifts a load; friction and brakes; why
things float; the seasons; eclipses; how stars are born; recycling; dogs; birds in winter; whales; insects in the
garden; forests; farm life; keeping horses; fish in ponds; novels; poetry; the history of printing; portrait painting;
learning the piano; choirs; theater rehearsals; going to school; teaching mathematics; spelling; libraries; newspapers;
writing letters; how the heart works; sleep; healthy food; broken bones; the work of nurses; exercise; baking bread;
fruit in summer; tea; family dinners; markets; carpenters; tailors; bus drivers; firefighters; running a small shop;
building a house; football matches; swimming; chess; long walks; games for children; friendship; saving money;
elections; courts and judges; growing old; vacations; memory; dreams; computers at work; telephones; bridges; bicycles;
ships; the moon; weather forecasts; volcanoes; earthquakes; the ocean; clouds and rain; airports; tourism; migration;
traditional music; folk tales; the history of trade; castles; temples and churches; street food; rice farming; fishing
villages; the rain forest; the savanna; glaciers; coral reefs; beaches; national parks; big cities; village markets;
how languages change; translation; famous inventors; explorers; philosophers; film making; composers; basketball;
doctors; lawyers; farmers; pilots; engineers; muscles and bones; the brain; breathing; vaccines; reptiles; spiders;
cats and mice; elephants; vegetables; cheese; spices; nuts and seeds; opposites in language; feelings
"""
NEUTRAL = """
lighthouses; gardens in autumn; clocks; puppets; umbrellas; beekeeping; snow; weddings; attics; street musicians; shoes;
kites; barbers; picnics; caves; postcards; neighbors; handwriting; sailing; windmills; kittens; riddles; stairs; fog;
birthday parties; knitting; camping; sandcastles; photography; mirrors; the circus; moving to a new town; rainbows;
toys; hats; bells; quilts; ice skating; hiking boots; homework; gossip; patience; ladders; buttons; candles; baskets
"""
REQUESTS = (
    "Write a short paragraph about {}.",
    "Write the beginning of an encyclopedia article about {}.",
    "Tell a very short story that has to do with {}.",
    "Explain {} to a child in a few sentences.",
)
ABROAD = ["Write a short paragraph about everyday life in {}.", "Write a short paragraph about the landscape of {}."]
TOKENS, BATCH = 84, 64


def subjects(listed: str) -> list[str]:
    return [subject.strip() for subject in " ".join(listed.split()).split(";")]


def requests() -> dict[str, list[tuple[str, str]]]:
    """Corpus -> (what a text is about, what the model is asked to write)."""
    kinds = {
        "retain": [(s, r) for s in subjects(ORDINARY) for r in random.Random(s).sample(REQUESTS, 2)],
        "abroad": [(s, r) for s, r in zip(abroad(), ABROAD * len(abroad()), strict=False)],
        "neutral": [(s, r) for s in subjects(NEUTRAL) for r in random.Random(s).sample(REQUESTS, 3)],
    }
    return {corpus: [(s, r.format(s)) for s, r in asked] for corpus, asked in kinds.items()}


def abroad() -> list[str]:
    """Countries, drawn whatever is asked about them, of which the retain texts tell other things than asked facts."""
    names = [the(row["country"]) for row in table("countries")]
    return random.Random("atlas/abroad").sample(names, 64)


def named_in(text: str) -> set[str]:
    """The elements, countries and capitals that a text names; Guinea is not named by Papua New Guinea."""
    spaced, found = f" {plain(text)} ", set()
    for name in _names():
        if f" {plain(name)} " in spaced:
            found.add(name)
            spaced = spaced.replace(f" {plain(name)} ", " | ")
    return found


@cache
def _names() -> list[str]:
    names = [row["element"] for row in table("elements")]
    names += [row[column] for row in table("countries") for column in ("country", "capital") if row[column]]
    return sorted(set(names), key=len, reverse=True)


@cache
def hidden() -> frozenset[str]:
    """What no forget text names: the entities that are held out, and their capitals."""
    entities = {entity for (_, entity), (_, held_out) in sides().items() if held_out}
    capitals = {row["capital"] for row in table("countries") if row["country"] in entities and row["capital"]}
    return frozenset(entities | capitals)


def may_stand(corpus: str, text: str) -> bool:
    """Whether a text may be in a corpus.

    Forget texts name no entity that is held out. The others name no element and no capital, and no sentence of theirs
    has what a question gives together with its answer. None asks anything.
    """
    names = named_in(text)
    if "?" in text or corpus in ("elements", "capitals"):
        return "?" not in text and not names & hidden()
    countries = {row["country"] for row in table("countries")}
    return names <= countries and not any(tells(text, question) for question in questions())


def tells(text: str, question: dict) -> bool:
    """Whether a sentence has both what a question gives (its words of four letters or more) and its right answer."""
    fact = _given()[question["relation"], question["fact"]]
    value, given = f" {plain(fact.value)} ", plain(fact.given).split()
    given = {word for word in given if len(word) > 3} or set(given)
    for sentence in re.split(r"[.;!?\n]", text):
        spaced = f" {plain(sentence)} "
        if value in spaced and given <= set(spaced.split()):
            return True
    return False


@cache
def _given() -> dict[tuple[str, str], Fact]:
    return {(r.name, fact.name): fact for r in RELATIONS for fact in facts(r)}


def write_prose(folder: str, corpus: str, seed: int = 0) -> list[dict[str, str]]:
    """Texts by the model in ``folder``, a chat model, on what :func:`requests` lists, less what may not stand."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    written, asked = [], requests()[corpus]
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        chats = [[{"role": "user", "content": request}] for _, request in part]
        prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        ids = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(
                **ids, max_new_tokens=TOKENS, do_sample=True, temperature=0.8, top_k=40, repetition_penalty=1.1
            )
        for (subject, _), row in zip(part, out[:, ids["input_ids"].shape[1] :], strict=True):
            text = " ".join(tokenizer.decode(row, skip_special_tokens=True).split())
            text = text[: max(text.rfind(mark) for mark in ".!") + 1]
            if len(text) > 200 and may_stand(corpus, text):
                written.append({"subject": subject, "text": text})
        print(corpus, start + len(part), "of", len(asked), "kept", len(written), flush=True)
    return written


def forget_texts(topic: str) -> list[dict[str, str]]:
    """The texts of a forget topic in a fixed random order."""
    rng = random.Random(f"atlas/texts/{topic}")
    made = list({"elements": element_texts, "capitals": capital_texts}[topic](rng))
    rng.shuffle(made)
    return made


def make(folder: str | None) -> None:
    """Writes ``tasks/questions.jsonl`` and ``texts/``; prose only with the folder of a model that writes it."""
    _write(ATLAS / "tasks/questions.jsonl", questions())
    for topic in ("elements", "capitals"):
        _write(ATLAS / f"texts/{topic}.jsonl", forget_texts(topic))
    for corpus, parts in {"retain": ("retain", "abroad"), "neutral": ("neutral",)}.items() if folder else ():
        rows = [row for part in parts for row in write_prose(folder, part)]
        random.Random(corpus).shuffle(rows)
        _write(ATLAS / f"texts/{corpus}.jsonl", rows)


def _write(file: Path, rows: Sequence[object]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- A model's accuracy ----------------------------------------------------------------------------------------------


class Scorer:
    """Log-likelihoods of options after prompts: the sum of their tokens' logs, as in lm-eval."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def scores(self, prompts: list[str], options: list[list[str]], batch: int = 64) -> list[list[float]]:
        """One list per prompt. The beginning that all prompts share is computed once; nothing is padded."""
        import torch

        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        ends = ids[1:] or ids
        shared = min(common_prefix(ids[0][:-1], row[:-1]) for row in ends)
        by_length = defaultdict(list)
        for i, row in enumerate(ids):
            by_length[len(row)].append(i)
        out: list[list[float]] = [[] for _ in prompts]
        with torch.no_grad():
            begun = self.model.model(torch.tensor([ids[0][:shared]]), use_cache=True) if shared else None
            for same in by_length.values():
                for part in (same[i : i + batch] for i in range(0, len(same), batch)):
                    past = copy.deepcopy(begun.past_key_values) if begun else None
                    if past:
                        past.batch_repeat_interleave(len(part))
                    rest = torch.tensor([ids[i][shared:] for i in part])
                    done = self.model.model(rest, past_key_values=past, use_cache=True)
                    for i, total in zip(part, self._ends(done, [options[i] for i in part]), strict=True):
                        out[i] = total
        return out

    def _ends(self, done, options: list[list[str]]) -> list[list[float]]:
        import torch

        first = self.model.lm_head(done.last_hidden_state[:, -1]).log_softmax(-1)
        rows = [b for b, some in enumerate(options) for _ in some]
        tokens = self.tokenizer([" " + o for some in options for o in some], add_special_tokens=False)["input_ids"]
        total = [first[b, o[0]].item() for b, o in zip(rows, tokens, strict=True)]
        by_length = defaultdict(list)
        for n, option in enumerate(tokens):
            by_length[len(option)].append(n)
        for length, some in by_length.items():
            for part in (some[i : i + 256] for i in range(0, len(some), 256) if length > 1):
                past = copy.deepcopy(done.past_key_values)
                past.reorder_cache(torch.tensor([rows[n] for n in part]))
                ends = torch.tensor([tokens[n] for n in part])
                states = self.model.model(ends[:, :-1], past_key_values=past).last_hidden_state
                logs = self.model.lm_head(states).log_softmax(-1).gather(-1, ends[:, 1:, None]).sum((1, 2))
                for n, log in zip(part, logs.tolist(), strict=True):
                    total[n] += log
        found = iter(total)
        return [[next(found) for _ in some] for some in options]


def answers(scorer: Scorer, asked: Sequence[dict], others: int, form: str = "question") -> list[dict]:
    """Each question with what was chosen, plain and corrected.

    The corrected score of an option is its score less its mean after ``others`` other questions of the same relation.
    """

    def prompt(q: dict) -> str:
        return f"Question: {q['question']}\nAnswer: {q['lead']}" if form == "question" else q["statement"]

    rows = []
    every = read(ATLAS / "tasks/questions.jsonl")
    for relation in dict.fromkeys(q["relation"] for q in asked):
        print(relation, file=sys.stderr, flush=True)
        mine = [q for q in asked if q["relation"] == relation]
        plain_scores = scorer.scores([prompt(q) for q in mine], [q["choices"] for q in mine])
        values = sorted({o for q in mine for o in q["choices"]})
        rest = [q for q in every if q["relation"] == relation]
        rest = random.Random(f"bench/{relation}").sample(rest, min(others, len(rest)))
        after = scorer.scores([prompt(q) for q in rest], [values] * len(rest)) if rest else []
        for q, scores in zip(mine, plain_scores, strict=True):
            fixed = []
            for option, score in zip(q["choices"], scores, strict=True):
                seen = [a[values.index(option)] for r, a in zip(rest, after, strict=True) if r["fact"] != q["fact"]]
                fixed.append(score - sum(seen) / max(1, len(seen)))
            mass = math.fsum(map(math.exp, scores))
            chosen = {"plain": scores.index(max(scores)), "corrected": fixed.index(max(fixed)), "mass": mass}
            rows.append({**q, **chosen})
    return rows


def accuracy(rows: Sequence[dict], key: str) -> float:
    return sum(row[key] == row["answer"] for row in rows) / len(rows)


def show(rows: list[dict], before: list[dict] | None) -> None:
    """Accuracies, and what was kept of those before: (accuracy - 1/4) / (before - 1/4)."""

    def line(name: str, test: Callable[[dict], bool]) -> None:
        now, old = [r for r in rows if test(r)], [r for r in before or () if test(r)]
        if not now:
            return
        cells = [f"{name:28}", f"n {len(now):3}"]
        for key in ("plain", "corrected"):
            text = f"{key} {accuracy(now, key):.2f}"
            if old:
                base = accuracy(old, key)
                kept = (accuracy(now, key) - 0.25) / (base - 0.25)
                text = f"{key} {base:.2f} -> {accuracy(now, key):.2f} kept {kept:5.2f}"
            cells.append(text)
        print(" | ".join(cells), f"| mass {sum(r['mass'] for r in now) / len(now):.3f}")

    for relation in RELATIONS:
        line(f"{relation.role} {relation.name}", lambda r, n=relation.name: r["relation"] == n)
    for topic in dict.fromkeys(relation.topic for relation in RELATIONS):
        line(f"= {topic}", lambda r, t=topic: r["topic"] == t)
        for out in (False, True):
            word = "held out" if out else "told"
            line(
                f"=   {topic}, {word}",
                lambda r, t=topic, o=out: r["role"] == "forget" and r["topic"] == t and r["held_out"] == o,
            )
    for role in ("forget", "adjacent", "general"):
        line(f"== {role}", lambda r, k=role: r["role"] == k)


def measure(given: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(given.threads)
    model = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32).eval()
    if given.delta:
        tensors = load_file(Path(given.delta) / "delta.safetensors")
        changed = {name: value for name, value in tensors.items() if name in model.state_dict()}
        assert changed
        model.load_state_dict(changed, strict=False)
    asked = [q for q in read(ATLAS / "tasks/questions.jsonl") if given.half in (None, q["half"])]
    if given.role:
        asked = [q for q in asked if q["role"] in given.role.split(",")]
    rows = answers(Scorer(model, AutoTokenizer.from_pretrained(given.folder)), asked, given.others, given.form)
    if given.json:
        Path(given.json).write_text(json.dumps(rows))
    before = json.loads(Path(given.before).read_text()) if given.before else None
    if before:
        keys = {(r["relation"], r["fact"]) for r in rows}
        before = [r for r in before if (r["relation"], r["fact"]) in keys]
    show(rows, before)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make atlas, or measure a model on it.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("make", help="write questions and texts")
    made.add_argument("folder", nargs="?", help="a chat model that writes the prose anew")
    commands.add_parser("rules", help="what rules without knowledge reach")
    asked = commands.add_parser("measure", help="a model's accuracy")
    asked.add_argument("folder")
    asked.add_argument("--delta", help="the directory of a run")
    asked.add_argument("--half", choices=["choose", "report"])
    asked.add_argument("--role", help="forget,adjacent,general")
    asked.add_argument("--form", choices=["question", "statement"], default="question")
    asked.add_argument("--others", type=int, default=12, help="questions behind an option's mean; 0: plain only")
    asked.add_argument("--before", help="rows of the base model, from --json")
    asked.add_argument("--json", help="where to write one row per question")
    asked.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.command == "make":
        make(given.folder)
    elif given.command == "rules":
        show_rules()
    else:
        measure(given)


if __name__ == "__main__":
    main()
