"""What a model knows: lm-eval's tasks, questions, scoring, perplexity, statistics. Knows nothing of unlearning."""
