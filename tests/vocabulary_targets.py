"""Texts and targets of these tests.

The tiny target takes a second, tekken is a real multilingual tokenizer of 131,072 entries that
comes with mistral_common, and SmolLM2 is used where its checkpoint was built already.
"""

import base64
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastmtp_sglang.files import cache
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.vocabulary.target import Target, load_target

TEKKEN = Path(find_spec("mistral_common").origin).parent / "data" / "tekken_240911.json"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if tools %}You may call functions.{% endif %}"
    "{% generation %}{% endgeneration %}"
)


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """One paragraph a detectable language, code included, mostly about the same things."""
    return json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tekken_tokens() -> list[bytes | None]:
    """Bytes of tekken's tokens by id, read from its own file; None for its special tokens."""
    content = json.loads(TEKKEN.read_text(encoding="utf-8"))
    special = content["config"]["default_num_special_tokens"]
    size = content["config"]["default_vocab_size"]
    ordinary = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"]]
    return [None] * special + ordinary[: size - special]


@pytest.fixture(scope="session")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("tekken")
    shutil.copy(TEKKEN, folder / "tekken.json")
    return load_target(str(folder), vocab_size=131072)


@pytest.fixture(scope="session")
def smollm2_target() -> Target:
    if not (cache.directory() / "smollm2-135m-instruct").is_dir():
        pytest.skip("the SmolLM2 checkpoint is not built yet; `fastmtp demo` builds it")
    return load_target(str(SMOLLM2.checkpoint()))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> Path:
    """A model directory without weights: 700 tokens learned from `texts`, 760 rows in the head."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=695,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    corpus = [*texts.values(), "    \n\n\n   \t\t  " * 50, " 1 2 3 4 5 6 7 8 9 0" * 50]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(
        [AddedToken("<think>", special=False), AddedToken("</think>", special=False)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = {
        "vocab_size": 760,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Target:
    return load_target(str(tiny_folder))
