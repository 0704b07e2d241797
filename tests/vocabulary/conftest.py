"""Texts and targets of these tests."""

from vocabulary_targets import (
    smollm2_target,
    tekken,
    tekken_tokens,
    texts,
    tiny,
    tiny_folder,
)
