"""The unlearning loop and its methods."""
