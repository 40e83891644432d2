"""Worlds that ship with the project: facts, questions about them, and texts that tell them."""
