"""Tracking of a run. A tracker only listens: whatever happens to it, the run goes on."""

from rmu_exp.tracking.weights_and_biases import Tracker, open_tracker, refuse, switched, sync_line

__all__ = ["Tracker", "open_tracker", "refuse", "switched", "sync_line"]
