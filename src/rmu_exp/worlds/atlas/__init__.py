"""Real, harmless facts that a pretrained language model knows: tables, the questions about them, and prose."""

from rmu_exp.worlds.atlas.write import texts

__all__ = ["texts"]
