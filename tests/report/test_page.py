"""report.html holds what report.md says, and nothing that a model wrote is markup in it or fetched by it."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from rmu_exp.report import observed
from rmu_exp.report.page import page
from rmu_exp.report.table import Table

HOSTILE = "<script>x()</script> ![a](http://b/c.png) [d](javascript:e) | *f* `g`"
LINE = {"role": "forget", "prompt": HOSTILE, "base": "Hg.\nIt is", "unlearned": ""}


def test_tables_figures_and_sections(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/norms.png").write_bytes(b"a picture")
    (tmp_path / "secret.png").write_bytes(b"another")
    report = "# RMU on <x>\n\n## Questions\n\n| a | b |\n| --- | --: |\n| c | 1 |\n\n![norms](plots/norms.png)\n"
    made = page(f"{report}\n![s](plots/../secret.png)\n\n## Damage & more\n", tmp_path, Table([], []))
    assert "<title>RMU on &lt;x&gt;</title>" in made
    assert re.findall(r'<a href="#(\w+)">(.+)</a>', made) == [("s0", "Questions"), ("s1", "Damage &amp; more")]
    assert all(f'<h2 id="{name}">' in made for name in ("s0", "s1"))
    assert '<td style="text-align:right">1</td>' in made
    assert re.findall('base64,([^"]+)', made) == [base64.b64encode(b"a picture").decode()]
    assert "<details" not in made


def test_what_models_write_is_text(tmp_path: Path) -> None:
    table = observed.samples([LINE] * 9, 9)
    made = page(f"# t\n\n{table.markdown()}\n", tmp_path, table)
    assert made.count("&lt;script&gt;x()&lt;/script&gt; ![a](http://b/c.png) [d](javascript:e) | *f* `g`") == 18
    assert not re.search(r"<script|<img|<a href=\"[^#]|<em>f", made)
    assert made.count("Hg. ⏎ It is") == 18
    assert "default-src 'none'" in made
