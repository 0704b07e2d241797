"""Documents in flat arrays.

Alone: pytest tests/training/test_corpus.py
"""

import tracemalloc

import numpy as np
import pytest
import torch

from fastmtp_sglang.training.corpus import Changed, Corpus
from fastmtp_sglang.training.packing import Document


@pytest.fixture
def corpus():
    made = Corpus()
    made.append(np.array([5, 6, 7], np.int32), [(1, 3)])
    made.append(np.array([8, 9, 5, 4], np.int32), [(0, 1), (3, 4)])
    return made


def test_documents_come_back(corpus):
    assert len(corpus) == 2
    assert corpus.tokens == 7
    first, second = corpus
    assert first.input_ids.dtype == torch.int64
    assert first.input_ids.tolist() == [5, 6, 7]
    assert first.counted.tolist() == [False, True, True]
    assert second.counted.tolist() == [True, False, False, True]
    assert [d.input_ids.tolist() for d in corpus[1:]] == [[8, 9, 5, 4]]
    for wrong in (2, -1):
        with pytest.raises(IndexError):
            corpus[wrong]


def test_counted_ids(corpus):
    assert corpus.counted_ids(10).tolist() == [4, 6, 7, 8]


def test_changed_documents(corpus):
    changed = Changed(corpus, lambda index, d: Document(d.input_ids + index, d.counted))
    assert len(changed) == 2
    assert changed[1].input_ids.tolist() == [9, 10, 6, 5]
    assert [d.input_ids.tolist() for d in changed[:1]] == [[5, 6, 7]]


def test_memory_is_a_few_bytes_a_token():
    ids = np.arange(1000, dtype=np.int32)
    tracemalloc.start()
    made = Corpus()
    for _ in range(1000):
        made.append(ids, [(10, 1000)])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 6 * made.tokens
