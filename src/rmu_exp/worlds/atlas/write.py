"""The texts of atlas, from its tables: ``python -m rmu_exp.worlds.atlas.write FOLDER``.

Prose in the manner of an encyclopedia. A forget text tells of one element or one country; no text names an entity that
is held out, and none holds a question of the test. Retain texts tell of animals, words, work, food and ordinary
days. The neutral texts, from which nothing is trained, are of the same ordinary kind, about other things.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from rmu_exp.worlds.atlas import compose, world

ENTRIES = 3  # per entity: each with its own plan and wording
RETAIN = 200
NEUTRAL = 160


def texts(name: str) -> list[str]:
    """``elements``, ``capitals``, ``retain`` or ``neutral``, in a fixed random order.

    Raises:
        KeyError: no such corpus.
    """
    make: dict[str, Callable[[random.Random], list[str]]] = {
        "elements": _elements,
        "capitals": _capitals,
        "retain": lambda rng: _prose(neutral=False) + _ordinary(rng, RETAIN, PLACES[: len(PLACES) // 2]),
        "neutral": lambda rng: _prose(neutral=True) + _ordinary(rng, NEUTRAL, PLACES[len(PLACES) // 2 :]),
    }
    rng = random.Random(f"atlas/texts/{name}")
    made = make[name](rng)
    rng.shuffle(made)
    return made


def _prose(*, neutral: bool) -> list[str]:
    """What the base model wrote (see :mod:`rmu_exp.worlds.atlas.compose`)."""
    lines = (files(__package__) / "texts" / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if (row["subject"] in compose.NEUTRAL) == neutral]


def _elements(rng: random.Random) -> list[str]:
    rows = [row for row in world.table("elements") if row["element"] not in world.held_out("elements")]
    return [_element(row, rng) for row in rows for _ in range(ENTRIES)]


def _element(row: dict[str, str], rng: random.Random) -> str:
    name, low, symbol, kind = row["element"], row["element"].lower(), row["symbol"], row["kind"]
    opening = rng.choice(
        [
            f"{name}, written {symbol} in formulas, is {_a(kind)} with atomic number {row['number']}.",
            f"{name} ({symbol}) is {_a(kind)}; each of its atoms has {row['number']} protons in the nucleus.",
            f"Among the chemical elements, {low} takes place {row['number']}, and chemists write it as {symbol}.",
            f"The element {low} appears in the periodic table as {symbol}, in period {row['period']}.",
        ]
    )
    group = f"It stands in group {row['group']} and period {row['period']} of the periodic table."
    if not row["group"]:
        group = f"It stands in period {row['period']}, in the row that is set apart below the main table."
    rest = [
        group,
        f"Chemists count {low} among the {kind}s." if kind != "metal" else f"Chemists count {low} among the metals.",
        f"In an equation one atom of {low} is written {symbol}, and two atoms are written 2{symbol}.",
        f"A neutral atom of {low} has {row['number']} electrons around a nucleus with {row['number']} protons.",
        f"When {low} reacts, its outer electrons decide which bonds it forms and which compounds contain {symbol}.",
        f"Isotopes of {low} differ in the number of neutrons but share the atomic number {row['number']}.",
        f"Laboratories identify {symbol} by the lines of its spectrum and by the mass of its atoms.",
        f"Samples of {low} are kept in labelled bottles; the label shows the letters {symbol} and the purity.",
    ]
    rng.shuffle(rest)
    return " ".join([opening, *rest[: rng.randint(4, 6)]])


def _capitals(rng: random.Random) -> list[str]:
    rows = [
        row for row in world.table("countries") if row["capital"] and row["country"] not in world.held_out("capitals")
    ]
    return [_capital(row, rng) for row in rows for _ in range(2)]


def _capital(row: dict[str, str], rng: random.Random) -> str:
    country, city = row["country"], row["capital"]
    opening = rng.choice(
        [
            f"{city} is the capital of {country} and the seat of its government.",
            f"The government of {country} sits in {city}, the national capital.",
            f"{country} is governed from its capital city, {city}.",
            f"As the capital of {country}, {city} houses the parliament and most ministries.",
        ]
    )
    rest = [
        f"Ambassadors to {country} present their letters in {city}.",
        f"The national museum and the central bank of {country} are in {city}.",
        f"Main roads of {country} are measured from the centre of {city}.",
        f"On the national holiday of {country}, crowds gather in the squares of {city}.",
        f"Visitors who fly to {country} often land near {city} first.",
        f"The mayor of {city} is a well-known figure throughout {country}.",
        f"Maps of {country} mark {city} with a star.",
        f"Laws of {country} are printed and archived in {city}.",
        f"Embassies line the avenues of {city}, since foreign states keep their missions in the capital of {country}.",
    ]
    rng.shuffle(rest)
    return " ".join([opening, *rest[: rng.randint(4, 6)]])


PLACES = (
    "the bakery",
    "the library",
    "the village school",
    "the harbour",
    "the small theatre",
    "the garden",
    "the workshop",
    "the farm",
    "the hospital",
    "the railway station",
    "the market hall",
    "the swimming pool",
    "the post office",
    "the orchard",
    "the music room",
    "the kitchen",
    "the bookshop",
    "the football ground",
    "the old mill",
    "the ferry",
    "the tailor's shop",
    "the hotel",
    "the campsite",
    "the museum of toys",
)
_NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Kate",
    "Liam",
    "Mary",
    "Noah",
    "Olive",
    "Paul",
    "Rose",
    "Sam",
    "Tom",
    "Vera",
]
_DEEDS = (
    "opened the windows and let the morning air into the room",
    "wrote a list of things to do and pinned it on the wall",
    "carried a heavy basket of apples up the stairs",
    "told a long story about a dog that learned to open doors",
    "read two chapters of a novel and fell asleep over the third",
    "repaired a broken chair with glue and a small hammer",
    "cooked soup with onions, carrots and a little cream",
    "counted the money twice, because the first result was wrong",
    "played an old song on the piano, slowly at first",
    "waited for the bus, which was late because of the rain",
    "fed the horses and brushed the youngest one",
    "asked the doctor about a pain in the knee",
    "watched a flock of geese fly low over the field",
    "planted beans in straight rows along the fence",
    "explained the rules of the game to three impatient children",
    "folded the letters and put them into a drawer",
    "painted the door green and the frame white",
    "lost a glove and found it again under the bench",
    "listened to the news and turned off the radio",
    "washed the floor, which took longer than it should have",
)
_THOUGHTS = (
    "Nobody was in a hurry, and there was enough time to talk.",
    "It is easier to start a task than to finish it, as everyone there knew.",
    "The work was not hard, but it had to be done with care.",
    "What mattered most was that people could trust one another.",
    "Some days are loud and others are quiet; this one was somewhere in between.",
    "A good tool saves an hour, and a bad one costs two.",
    "Children asked questions all the time, and some of them were difficult.",
    "The weather changed before noon, and by evening the sky was clear again.",
    "In spring the place filled with visitors, while in winter it was nearly empty.",
    "Habits are hard to change, especially the small ones.",
)


def _ordinary(rng: random.Random, count: int, places: Sequence[str]) -> list[str]:
    told: set[str] = set()
    while len(told) < count:
        kind = rng.randrange(3)
        told.add(_scene(rng, places) if kind == 0 else _general(rng, places))
    return sorted(told)


def _scene(rng: random.Random, places: Sequence[str]) -> str:
    place, (one, other) = rng.choice(places), rng.sample(_NAMES, 2)
    deeds = rng.sample(_DEEDS, 3)
    thoughts = rng.sample(_THOUGHTS, 2)
    return (
        f"Early in the day {one} came to {place} and {deeds[0]}. {thoughts[0]} Later {other} {deeds[1]}, while {one} "
        f"{deeds[2]}. {thoughts[1]}"
    )


def _general(rng: random.Random, places: Sequence[str]) -> str:
    """A paragraph on a few things of general knowledge that no question asks about."""
    name, place = rng.choice(_NAMES), rng.choice(places)

    def row(table: str) -> dict[str, str]:
        return rng.choice([r for r in world.table(table) if next(iter(r.values())) in world.stated(table)])

    def animal() -> str:
        r = row("animals")
        return f"People near {place} often talk of {_a(r['animal'])}, {_a(r['kind'])} that they know well."

    def worker() -> str:
        r = row("occupations")
        return f"One neighbour is {_a(r['worker'])}, a person who {r['work']}."

    def organ() -> str:
        r = row("body")
        return f"A chart on the wall shows the {r['organ']} and says that this {r['task']}."

    def food() -> str:
        r = row("foods")
        return f"The shopping list began with {r['food']}, under the heading {r['kind']}."

    def opposite() -> str:
        r = row("opposites")
        return f"The words {r['word']} and {r['opposite']} pull in contrary directions."

    def author() -> str:
        r = row("authors")
        return f"{name} borrowed {r['work']} by {r['author']} and returned it a week later."

    def person() -> str:
        r = row("people")
        return f"{name} admired {r['person']}, the {r['profession']}, and kept a picture on the wall."

    def inventor() -> str:
        r = row("inventors")
        return f"A page of the calendar was about {r['invention']} and about {r['inventor']}."

    plans = [animal, worker, organ, food, opposite, author, person, inventor]
    chosen = rng.sample(plans, 4)
    parts = [plan() for plan in chosen]
    parts.insert(rng.randint(1, 3), rng.choice(_THOUGHTS))
    return " ".join(parts)


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write atlas's texts as JSON lines.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("elements", "capitals", "retain", "neutral"):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts(name)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
