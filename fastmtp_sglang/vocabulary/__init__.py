"""Draft vocabularies: which token ids the head scores for a request of a given language."""
