"""Looks inside an unlearned model that change nothing in it: one module and one YAML a probe."""
