"""What the docs say of the configuration is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8"))
    for target, anchor in links:
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_code_exist(page: Path) -> None:
    """Paths with a capital letter stand for a name of the reader's, as in conf/model/NAME.yaml."""
    text = page.read_text(encoding="utf-8")
    named = {path for code in CODE.findall(text) for path in PATH.findall(code)} - set(EXAMPLE.findall(text))
    assert not [path for path in named if not re.search("[A-Z]", path) and not list(ROOT.glob(path))]


def test_the_site_has_every_page():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.relative_to(ROOT).as_posix() for page in PAGES}


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="the docs extra is not installed")
def test_the_site_builds_strictly_with_the_reference():
    """By the commands of the Makefile, with this environment in place of the one that it would make."""
    line = ["make", "docs", f"BIN={Path(sys.executable).parent}", "--assume-old=.venv/.docs"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "build/site/docs/api.html").read_text(encoding="utf-8")
    for name in ("unlearn", "evaluate", "attack", "load", "Unlearned"):
        assert f'id="rmu_exp.api.{name}"' in page
    assert 'id="rmu_exp.record.results.Results"' in page
