"""Self-distillation data: the target answers prompts itself, and its answers are cleaned."""
