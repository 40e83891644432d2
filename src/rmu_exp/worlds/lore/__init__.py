"""lore: a fictional encyclopedia, and a small model that knows it, so that every claim can be tested."""

from rmu_exp.worlds.lore.corpora import texts

__all__ = ["texts"]
