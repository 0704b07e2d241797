"""The built-in models, and what identifies a tokenizer."""
