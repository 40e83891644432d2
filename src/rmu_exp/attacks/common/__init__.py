"""What the attacks have in common: what they get and give back, questions, scoring, learning, carrying them out."""
