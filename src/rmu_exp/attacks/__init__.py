"""What an adversary with a stated budget gets out of an unlearned model: one module and one YAML an attack."""
