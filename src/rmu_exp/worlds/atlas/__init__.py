"""Real, harmless facts that a pretrained language model knows: tables, the questions about them, and prose."""
