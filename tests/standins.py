"""Harmless stand-ins for the gated and the large: texts and questions in the real data sets' formats.

Same names, columns, configs, splits and file layout as on the hub; the contents are about counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

Rows = Sequence[Mapping[str, Any]]
BIO, CORPORA, WIKITEXT = "cais/wmdp-bio-forget-corpus", "cais/wmdp-corpora", "Salesforce/wikitext"
WMDP, MMLU = "cais/wmdp", "cais/mmlu"
CYBER_CONFIG, WIKITEXT_CONFIG = "cyber-forget-corpus", "wikitext-2-raw-v1"


def sentences(count: int, about: str) -> list[str]:
    """Invented sentences of different lengths."""
    return [f"Jar {i} of {about} holds {'one more than ' * (i % 4)}{i} buttons." for i in range(count)]


def cyber() -> list[str]:
    return sentences(6, "tin")


def wikitext() -> list[str]:
    """As the library gives it: records keep their line ends and spaces, and many are empty."""
    return ["", " = Buttons = \n", "", *(f" {s}\n" for s in sentences(4, "glass")), ""]


def papers() -> list[dict[str, str]]:
    return [{"title": f"On jar {i}", "abstract": "We count.", "text": t} for i, t in enumerate(sentences(5, "clay"))]


def questions(count: int, subject: str | None = None) -> list[dict[str, Any]]:
    """Sums with four answers, in the order of WMDP's columns or, with a subject, MMLU's."""
    rows = []
    for i in range(count):
        choices = [str(2 * i + k) for k in range(4)]
        row = {"question": f"What is {i} + {i + i % 4}?", "choices": choices, "answer": i % 4}
        rows.append(row | ({"subject": subject} if subject else {}))
    return rows


def write(folder: Path, configs: Mapping[str, Mapping[str, Rows]], features: str = "") -> Path:
    """A dataset repository: one parquet file a split, a folder a config, and the card that lists them.

    Args:
        configs: config to split to rows.
        features: lines of the card's ``dataset_info`` for each config.
    """
    card, info = ["---", "configs:"], ["dataset_info:"] if features else []
    for config, splits in configs.items():
        card += [f"- config_name: {config}", "  data_files:"]
        info += [f"- config_name: {config}", features.rstrip()] if features else []
        for split, rows in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            parquet.write_table(pa.Table.from_pylist(list(rows)), folder / config / f"{split}-00000-of-00001.parquet")
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, *info, "---", "# A stand-in", ""]))
    return folder


def texts(given: Sequence[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in given]


def corpora(folder: Path) -> dict[str, Path]:
    """Repository to its folder, for the corpora of the published run."""
    return {
        BIO: write(folder / "bio", {"default": {"train": papers()}}),
        CORPORA: write(
            folder / "corpora",
            {"bio-retain-corpus": {"train": texts(sentences(2, "wax"))}, CYBER_CONFIG: {"train": texts(cyber())}},
        ),
        WIKITEXT: write(
            folder / "wikitext",
            {WIKITEXT_CONFIG: {"test": texts(wikitext()), "train": texts(sentences(2, "oak"))}},
        ),
    }


ANSWER = """  features:
  - name: question
    dtype: string
  - name: choices
    sequence: string
  - name: answer
    dtype:
      class_label:
        names:
          '0': A
          '1': B
          '2': C
          '3': D
"""


def question_sets(folder: Path, subjects: Sequence[str] = ("virology",)) -> dict[str, Path]:
    """Repository to its folder, for WMDP's three sets and some subjects of MMLU."""
    sets = {f"wmdp-{kind}": {"test": questions(count)} for kind, count in (("bio", 8), ("cyber", 6), ("chem", 4))}
    mmlu = {s: {"test": questions(5, s), "validation": questions(2, s), "dev": questions(5, s)} for s in subjects}
    return {
        WMDP: write(folder / "wmdp", sets),
        MMLU: write(folder / "mmlu", mmlu, ANSWER + "  - name: subject\n    dtype: string\n"),
    }
