"""Tracking of a run. A tracker only listens: whatever happens to it, the run goes on."""

from rmu_exp.tracking.tracker import Tracker, switched
from rmu_exp.tracking.weights_and_biases import open_tracker

__all__ = ["Tracker", "open_tracker", "switched"]
