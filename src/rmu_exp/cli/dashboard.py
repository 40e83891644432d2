"""Create or update a W&B workspace and report for a project.

Their panels are those of this work: forget against general, accuracy over layer and steer, activation norms, losses,
attacks, tables. The next call updates both.
"""

from __future__ import annotations

import argparse

from rmu_exp.support.errors import UserError
from rmu_exp.tracking.dashboards import DashboardSpec, publish


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="a W&B project that runs were tracked in")
    parser.add_argument("--forget", default="lore_forget", metavar="TASK", help="the questions to be forgotten")
    parser.add_argument("--general", default="lore_general", metavar="TASK", help="the questions to be kept")
    parser.add_argument("--topics", nargs="+", default=["hexes", "wards"], metavar="TOPIC", help="the forget topics")
    parser.add_argument("--attacks", nargs="+", default=[], metavar="ATTACK", help="the attacks to show")


def run(args: argparse.Namespace) -> int:
    """Create or update the workspace and the report."""
    entity, _, project = args.project.rpartition("/")
    if not entity or not project or "/" in entity:
        raise UserError(f"dashboard: got {args.project!r}, allowed is ENTITY/PROJECT")
    shown = DashboardSpec(entity, project, args.forget, args.general, args.topics, args.attacks)
    for kind, url in publish(shown).items():
        print(f"{kind}: {url}")
    return 0
