"""A W&B workspace and report for a project of runs, made by W&B's own library.

:func:`workspace` and :func:`report` only build the specification, without a network; :func:`publish` saves both, and
remembers where, so that the next call updates them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmu_exp.support.errors import RunError, UserError, first_line
from rmu_exp.support.files import cache_path, write_atomic

NAME = "RMU: forget against general"
RETRIES = 2  # of a request that the server did not answer
ROLES, STATES = ("forget", "retain"), ("updated", "frozen")
WORDS = """\
Each point is a trial: its accuracy on the forget questions (less is better) against that on the general ones (more is
better). The lower table is the last report of a sweep."""


@dataclass(frozen=True)
class DashboardSpec:
    """What the panels are about: the two groups of questions, the forget topics, the attacks."""

    entity: str
    project: str
    forget: str = "lore_forget"
    general: str = "lore_general"
    topics: Sequence[str] = ("hexes", "wards")
    attacks: Sequence[str] = ()


def _library() -> tuple[Any, Any]:
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise UserError("dashboard: wandb-workspaces is not installed; pip install 'rmu_exp[dashboards]'") from error
    return workspaces, v2


def sections(shown: DashboardSpec) -> dict[str, list[Any]]:
    """Title of a section to its panels."""
    _, w = _library()
    forget, general = (w.SummaryMetric(f"qa/{group}/unlearned") for group in (shown.forget, shown.general))
    layer, steer, alpha = (w.SummaryMetric(f"setting/{key}") for key in ("layer", "steer", "alpha"))
    columns = [w.ParallelCoordinatesPlotColumn(metric=m) for m in (layer, steer, alpha, forget, general)]
    curves = [
        w.LinePlot(title=f"activation norms, {t}", x="step", y=[f"norm/{t}/{r}_{s}" for r in ROLES for s in STATES])
        for t in shown.topics
    ]
    cosines = [f"cosine/{t}/{role}" for t in shown.topics for role in ROLES]
    found = {
        "Forget against general": [
            w.ScatterPlot(title="forget against general; upper left is better", x=forget, y=general, running_ymax=True),
            w.ScatterPlot(title="forget accuracy over layer and steer", x=layer, y=steer, z=forget, log_y=True),
            w.ScatterPlot(title="general accuracy over layer and steer", x=layer, y=steer, z=general, log_y=True),
            w.ParallelCoordinatesPlot(title="settings and what they gave", columns=columns),
            w.ParameterImportancePlot(with_respect_to=f"qa/{shown.forget}/unlearned"),
        ],
        "Training": [
            *curves,
            w.LinePlot(title="cosines, updated and frozen model", x="step", y=cosines),
            w.LinePlot(title="losses", x="step", y=["train/forget_loss", "train/retain_loss", "train/loss"]),
        ],
        "Questions": [
            w.WeavePanelSummaryTable(table_name="tables/accuracy"),
            w.MediaBrowser(title="accuracy before and after", media_keys=["plots/accuracy"]),
        ],
        "Sweeps": [
            w.WeavePanelSummaryTable(table_name="sweep/trials"),
            w.MediaBrowser(title="the front", media_keys=["sweep/plots/front"]),
        ],
    }
    if shown.attacks:
        bars = [f"attacks/{name}/after" for name in shown.attacks]
        found["Attacks"] = [w.BarPlot(title="forget accuracy under attack", metrics=bars)]
    return found


def workspace(shown: DashboardSpec) -> Any:
    """The workspace's specification."""
    ws, _ = _library()
    made = [ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections(shown).items()]
    return ws.Workspace(entity=shown.entity, project=shown.project, name=NAME, sections=made)


def report(shown: DashboardSpec) -> Any:
    """The report's specification."""
    _, w = _library()
    runs = w.Runset()  # of the report's own project; naming it would ask the server
    blocks: list[Any] = [w.TableOfContents(), w.P(WORDS)]
    for name, panels in sections(shown).items():
        blocks += [w.H2(name), w.PanelGrid(runsets=[runs], panels=panels)]
    return w.Report(project=shown.project, entity=shown.entity, title=NAME, blocks=blocks, width="fluid")


def publish(shown: DashboardSpec) -> dict[str, str]:
    """Save both, over those that an earlier call made. Returns their addresses.

    Raises:
        UserError: W&B's library is not installed, or there is no login.
        RunError: W&B refused, or cannot be reached.
    """
    ws, w = _library()
    import wandb

    wandb.setup(wandb.Settings(x_graphql_retry_max=RETRIES))  # else its service tries for minutes, after us too
    file = cache_path() / "dashboards.json"
    known: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    project = f"{shown.entity}/{shown.project}"
    made = dict(known.get(project, {}))
    try:
        if not wandb.login(prompt=False):
            raise UserError("dashboard: no W&B login; run `wandb login`, or set WANDB_API_KEY")
        for kind, new, parts, load in (
            ("workspace", workspace(shown), "sections", ws.Workspace.from_url),
            ("report", report(shown), "blocks", w.Report.from_url),
        ):
            target = load(made[kind]) if kind in made else new
            setattr(target, parts, getattr(new, parts))
            made[kind] = target.save().url
            write_atomic(file, json.dumps(known | {project: made}, indent=2))
    except UserError:
        raise
    except Exception as error:  # whatever W&B's client raises
        why = f"W&B refused, or cannot be reached ({first_line(error)})"
        raise RunError(f"{why}; the panels' keys are those of docs/sweeps.md") from error
    return made
