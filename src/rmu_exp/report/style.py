"""Colours and sizes of the figures. Drawn without pyplot: no global state."""

from __future__ import annotations

from matplotlib.figure import Figure

# Okabe and Ito: told apart by everyone
FORGET, RETAIN, GREEN, PINK, SKY, YELLOW = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY, BLACK = "#777777", "#000000"


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")
