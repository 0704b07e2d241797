"""Tokenizers of these tests: a real multilingual one (tekken, 131k entries) as bytes by id."""

import base64
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

TEKKEN = Path(find_spec("mistral_common").origin).parent / "data" / "tekken_240911.json"


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """One paragraph a detectable language, code included, mostly about the same things."""
    return json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tekken_tokens() -> list[bytes | None]:
    """Bytes of tekken's 131,072 tokens by id; None for its 1,000 special tokens."""
    content = json.loads(TEKKEN.read_text(encoding="utf-8"))
    special = content["config"]["default_num_special_tokens"]
    size = content["config"]["default_vocab_size"]
    ordinary = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"]]
    return [None] * special + ordinary[: size - special]
