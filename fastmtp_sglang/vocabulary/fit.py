"""A draft vocabulary and the target that it shall draft for, before it is served or written."""

from pathlib import Path

from fastmtp_sglang.models.config import checkpoint_config
from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary


def beside_head(head: str | Path) -> Path | None:
    """Return the draft vocabulary that a head directory is served with, None without any."""
    path = Path(head) / FILE_NAME
    return path if path.is_file() else None


def load_for(path: str | Path, target: str | Path) -> DraftVocabulary:
    """Read a file as serving does; `target` is a transformers checkpoint directory or hub id.

    Raises:
        FastMTPError: As `DraftVocabulary.load`.
    """
    from transformers import AutoTokenizer

    return DraftVocabulary.load(
        path,
        vocab_size=checkpoint_config(target).get_text_config().vocab_size,
        tokenizer_fingerprint=tokenizer_fingerprint(
            AutoTokenizer.from_pretrained(target, trust_remote_code=False)
        ),
    )
