"""Tables in every form, figures in a column, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from matplotlib.text import Text
from sweep_rows import HEAD, TRAIN, row

from rmu_exp.__main__ import main
from rmu_exp.record.results import RunInfo
from rmu_exp.report import plots, style
from rmu_exp.report.table import Table, numbers

TABLE = Table(["task", *numbers("lost & found")], [["&nbsp;`a_b`", "30.0 %"], ["x\\|y", "1–2"], ["short"]])


def test_a_table_as_csv_and_latex():
    read = list(csv.reader(io.StringIO(TABLE.csv())))
    assert read == [["task", "lost & found"], [" a_b", "30.0 %"], ["x|y", "1–2"], ["short", ""]]
    assert TABLE.latex().splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"task & lost \& found \\",
        r"\midrule",
        r"~a\_b & 30.0 \% \\",
        r"x\textbar{}y & 1--2 \\",
        r"short &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_figure_in_a_column_is_as_wide_and_its_text_legible_and_inside(tmp_path):
    run = RunInfo(model="m", topics=["x", "y"], method="rmu", layer=7, steer=[6.5], alpha=[40], seed=0)
    metrics = [
        {"step": i, "topic": t, "steer": 6.5, "norm_forget_updated": 1.0, "norm_retain_frozen": 2.0}
        for i in range(3)
        for t in ("x", "y")
    ]
    figure = style.narrow(plots.norms(run, metrics), 3.3)
    style.write(figure, tmp_path / "a.pdf")
    style.write(figure, tmp_path / "b.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert figure.get_size_inches()[0] == 3.3
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    assert {t.get_fontsize() for t in texts if not t.get_text().startswith("target")} == {7}
    (legend,) = figure.legends
    box = legend.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    assert 0 <= box.x0 < box.x1 <= 3.3
    panels = figure.axes
    assert panels[0].get_position().y0 > panels[1].get_position().y1  # one below the other


def test_the_command_writes_each_kind(tmp_path, capsys):
    for seed in (0, 1):
        folder = tmp_path / f"seed={seed}"
        folder.mkdir()
        run = HEAD["run"] | {"seed": seed}
        qa = {"f": row(30, 80, 70) | {"role": "forget"}, "g": row(60, 80) | {"role": "general"}}
        results = HEAD | {"run": run, "train": TRAIN, "qa": qa}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.yaml").write_text(f"seed: {seed}\n")
    out = tmp_path / "out"
    kinds = ["--format", "pdf", "svg", "png", "tex", "csv", "md"]
    assert main(["paper", str(tmp_path / "seed=0"), "--out", str(out), *kinds]) == 0
    assert main(["paper", str(tmp_path), "--out", str(out), *kinds]) == 0
    made = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {f"{name}.{kind}" for name in ("accuracy", "methods", "front") for kind in ("pdf", "svg", "png")} <= made
    assert {f"{name}.{kind}" for name in ("accuracies", "methods") for kind in ("tex", "csv", "md")} <= made
    for kind, begin in (("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")):
        assert (out / f"methods.{kind}").read_bytes().startswith(begin)
    assert main(["paper", str(tmp_path), "--width", "0"]) == 2
