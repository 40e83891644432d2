"""``dashboard``: a W&B workspace and report."""

from __future__ import annotations

import argparse
from typing import Any

from rmu_exp.support.errors import UserError


def add(commands: Any) -> None:
    """Add to the parser of ``python -m rmu_exp``."""
    one = commands.add_parser(
        "dashboard",
        help="create or update a W&B workspace and report for a project",
        description="Save a W&B workspace and a report with the panels of this work: forget against general, accuracy "
        "over layer and steer, activation norms, losses, attacks, tables. The next call updates both.",
    )
    one.add_argument("project", metavar="ENTITY/PROJECT", help="a W&B project that runs were tracked in")
    one.add_argument("--forget", default="lore_forget", metavar="TASK", help="the questions to be forgotten")
    one.add_argument("--general", default="lore_general", metavar="TASK", help="the questions to be kept")
    one.add_argument("--topics", nargs="+", default=["hexes", "wards"], metavar="TOPIC", help="the forget topics")
    one.add_argument("--attacks", nargs="+", default=[], metavar="ATTACK", help="the attacks to show")
    one.set_defaults(run=dashboard)


def dashboard(args: argparse.Namespace) -> None:
    """A W&B workspace and report."""
    from rmu_exp.tracking.dashboards import DashboardSpec, publish

    entity, _, project = args.project.rpartition("/")
    if not entity or not project or "/" in entity:
        raise UserError(f"dashboard: got {args.project!r}, allowed is ENTITY/PROJECT")
    for kind, url in publish(
        DashboardSpec(entity, project, args.forget, args.general, args.topics, args.attacks)
    ).items():
        print(f"{kind}: {url}")
