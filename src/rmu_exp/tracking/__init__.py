"""Tracking of a run. A tracker only listens: whatever happens to it, the run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rmu_exp.settings import Tracking
from rmu_exp.tracking import logged, trackio, weights_and_biases
from rmu_exp.tracking.tracker import OFF, Head, Tracker

__all__ = ["Tracker", "open_tracker", "refuse", "sweep_line"]


def open_tracker(
    settings: Tracking,
    folder: Path,
    config: Mapping[str, object],
    name: str,
    tags: Sequence[str],
    *,
    kind: str = "train",
    quiet: bool = False,
) -> Tracker:
    """The tracker that the settings, and W&B's own variables, ask for.

    Args:
        config, name, tags: what is shown of the run; a name in the settings or in WANDB_NAME wins, tags are added to.
        kind: the job type.
        quiet: whether somebody else says where what is tracked can be seen, or how it is uploaded.
    """
    head = Head(logged.plain(config), name, tags, kind)
    if settings.kind == "trackio":
        return trackio.TrackioTracker(settings, folder, head, quiet)
    if OFF in (settings.kind, weights_and_biases.switched(settings.mode)):
        return Tracker()
    return weights_and_biases.WandbTracker(settings, folder, head, quiet)


def refuse(settings: Tracking, sweep: bool = False) -> None:
    """Raise UserError where tracking as it is asked for cannot work, such as by variables that contradict it."""
    if settings.kind == "trackio":
        trackio.refuse(settings)
    elif settings.kind == "wandb":
        weights_and_biases.refuse(settings, sweep)


def sweep_line(settings: Tracking, folder: Path) -> str:
    """Where to see, or how to upload, what the trials and the report of a sweep have tracked; empty: nothing."""
    return trackio.show_line(settings) if settings.kind == "trackio" else weights_and_biases.sweep_line(folder)
