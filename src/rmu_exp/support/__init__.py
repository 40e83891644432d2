"""What every room may use: errors, files, memory, signals, progress. Knows nothing of unlearning."""
