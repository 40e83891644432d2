"""Checkpoints: opened as deep as needed, parameters by name, the Delta, export."""
