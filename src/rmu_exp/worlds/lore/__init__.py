"""lore: a fictional encyclopedia, and a small model that knows it, so that every claim can be tested."""
