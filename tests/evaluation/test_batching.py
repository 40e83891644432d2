from __future__ import annotations

import itertools
import random

import pytest

from rmu_exp.evaluation.batching import Prefix, Row, batches, share


def everything(prefix: Prefix) -> list[tuple[Prefix, Row]]:
    return [(prefix, row) for row in prefix.rows] + [pair for longer in prefix.longer for pair in everything(longer)]


def test_nested_prefixes_are_found_where_they_save_enough() -> None:
    head, subjects = (7,) * 20, [(1,) * 30, (2,) * 30]
    rows = [Row((*head, *subjects[i % 2], 100 + i, 5, 5)) for i in range(12)] + [Row((*head, 9, 9)), Row((3, 4))]
    random.Random(0).shuffle(rows)
    tree = share(rows, 100)
    assert [row.ids for row in tree.rows] == [(3, 4)]
    [shared] = tree.longer
    assert shared.ids == head
    assert [row.ids for row in shared.rows] == [(*head, 9, 9)]
    assert {longer.ids for longer in shared.longer} == {(*head, *subject) for subject in subjects}
    assert all(len(longer.rows) == 6 for longer in shared.longer)
    assert len(share(rows, 200).longer[0].longer) == 0  # 5 × 30 tokens are too few
    assert share(rows, 1000).longer == []


def test_scored_positions_are_never_inside_a_prefix() -> None:
    rows = [Row((1, 2, 3, 4, 5, 6), 3), Row((1, 2, 3, 4, 5, 6, 7), 1), Row((1, 2, 3, 4, 8), 1)]
    for prefix, row in everything(share(rows, 1)):
        assert len(prefix.ids) <= len(row.ids) - row.scored
        assert row.ids[: len(prefix.ids)] == prefix.ids


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_under_its_own_prefix_once(seed: int) -> None:
    rng = random.Random(seed)
    rows = [Row(tuple(rng.choices(range(300, 302), k=rng.randint(1, 12)))) for _ in range(40)]
    found = everything(share(rows, rng.choice([1, 5, 20])))
    assert sorted(map(id, rows)) == sorted(id(row) for _, row in found)
    assert all(row.ids[: len(prefix.ids)] == prefix.ids for prefix, row in found)


def test_a_chain_of_prefixes_is_no_recursion() -> None:
    chain = share([Row((1,) * n) for n in range(1, 1500)], 1)
    depth = 0
    while chain.longer:
        [chain] = chain.longer
        depth += 1
    assert depth > 1000


@pytest.mark.parametrize("seed", range(30))
def test_batches_cost_the_least_possible(seed: int) -> None:
    rng = random.Random(seed)
    lengths = sorted((rng.randint(1, 20) for _ in range(9)), reverse=True)
    extra = [rng.choice([0.0, 2.5]) for _ in lengths]
    budget, overhead = rng.choice([10, 30, 1000]), rng.choice([0, 3, 15])

    def allowed(a: int, b: int) -> bool:
        return b - a == 1 or (b - a) * lengths[a] + sum(extra[a:b]) <= budget

    def cost(cuts: list[tuple[int, int]]) -> float:
        return sum(overhead + (b - a) * lengths[a] for a, b in cuts)

    ways = []
    for n in range(len(lengths)):
        for inner in itertools.combinations(range(1, len(lengths)), n):
            cuts = list(itertools.pairwise([0, *inner, len(lengths)]))
            if all(allowed(a, b) for a, b in cuts):
                ways.append(cost(cuts))
    found = [(part.start, part.stop) for part in batches(lengths, extra, budget, overhead)]
    assert [a for a, _ in found] == [0, *[b for _, b in found[:-1]]]
    assert found[-1][1] == len(lengths)
    assert all(allowed(a, b) for a, b in found)
    assert cost(found) == min(ways)


def test_no_rows_no_batches() -> None:
    assert batches([], [], 10, 1) == []
    assert everything(share([], 1)) == []
