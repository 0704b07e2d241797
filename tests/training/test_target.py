"""The frozen target without its model: what it embeds is what the model embeds.

Alone: pytest tests/training/test_target.py
"""

import pytest
import tiny_models as models
import torch

from fastmtp_sglang.training.target import FrozenTarget


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embeddings_are_the_models(tmp_path, family, dtype):
    """To the bit, scaled or not: of Gemma's factor too only what the dtype holds is used."""
    target = FrozenTarget(models.target(tmp_path / "target", family), dtype=dtype)
    ids = torch.arange(0, 49152, 97)
    expected = target.model.get_input_embeddings()(ids)
    assert expected.dtype == dtype
    assert torch.equal(target.embed(ids), expected)
