"""What the docs say of the configuration is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from rmu_exp.config import reference
from rmu_exp.settings import Judge, Run
from rmu_exp.support.setting import groups_of, keys_of

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
PATH = re.compile(r"(?<![\w/.~-])(?:src|conf|docs|tests|bench)/[\w./*-]*\w/?")
EXAMPLE = re.compile(r"`(\S+)`:\n\n```")  # a file that the page tells the reader to write


def test_configuration_page_is_up_to_date():
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference.reference(ROOT / "conf")


def test_every_key_has_a_sentence():
    page = reference.reference(ROOT / "conf")
    for schema in (Run, Judge):
        keys = set(keys_of(schema)) - set(groups_of(schema)) - {"method", "attacks"}
        for key in {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}:
            assert re.search(rf"^\| `{key}` \|.*\| .{{8,}} \|$", page, re.MULTILINE), key


def test_every_choice_opens_with_a_comment():
    for file in (ROOT / "conf").glob("*/**/*.yaml"):
        head = file.read_text(encoding="utf-8").removeprefix("# @package _global_\n")
        assert re.match(r"# .{20}|# All of them", head), file
