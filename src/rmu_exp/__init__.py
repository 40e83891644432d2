"""rmu_exp: representation misdirection for unlearning, from one command line to a judged result."""

__version__ = "0.1.0"
