"""The vocabulary file: the token ids that drafting may score, per language, for one tokenizer.

One safetensors file. Tensors: `ids.LANG` int32 [n] sorted unique, `counts.LANG` int64 [n] (how
often each was counted; absent for imported lists), `token_scripts` int8 [vocab_size] (see
`scripts.py`). Everything else is JSON in the metadata. It is read and checked once, before any
weights load; whoever holds a `DraftVocabulary` need not check it again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from fastmtp_kernels.draft_logits import OWN_TOKENS
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import write_atomically
from fastmtp_sglang.vocabulary.id_list import check_ids
from fastmtp_sglang.vocabulary.languages import LANGUAGES
from fastmtp_sglang.vocabulary.scripts import Script

# A head directory that holds this file is served with it. In a folder of its own, since SGLang
# takes every *.safetensors beside a checkpoint's config.json for weights.
FILE_NAME = "draft_vocabulary/vocabulary.safetensors"
FORMAT = "fastmtp-draft-vocabulary"
FORMAT_VERSION = 1
# While serving, the full vocabulary is one more list: drafting from every token.
FULL_VOCABULARY = "full"
# The kernel's slot table has one bit a list in an int32 whose sign bit stays clear.
MAX_LANGUAGES = 30

LANGUAGE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_JSON_KEYS = ("vocab_size", "languages", "scripts", "routes", "source", "coverage", "samples")
# Files of releases before them have none of these; what is taken for it.
_LATER_KEYS = (("own_tokens", "0"), ("own_coverage", "{}"))
_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".pkl"}


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """Checked draft vocabularies of one target model.

    Attributes:
        vocab_size: Rows of the target's head, `config.vocab_size` (not the tokenizer's size).
        tokenizer_fingerprint: From `fingerprint.tokenizer_fingerprint`.
        ids: Language -> int64 [n], sorted ascending, unique. The order of the languages is their
            index in kernels and routing tables.
        token_scripts: int8 [vocab_size], values of `Script`: the table to route by.
        routes: Detected language -> language of `ids`. Complete: a detected language that is
            missing here drafts from the full vocabulary.
        source: Language -> where its list comes from, in words.
        counts: Language -> int64 [n], occurrences of each of `ids`; no entry for imported lists.
        coverage: Language -> share of held-out tokens that the list holds; no entry if not
            measured.
        samples: Language -> some of its tokens as text, most frequent first.
        own_tokens: How many of a request's own tokens, which its list lacks, are drafted from
            along with the list; 0 for none.
        own_coverage: Language -> share of held-out tokens that the list holds or that occurred
            before in their document; no entry if not measured.
        origin: The file it was read from; only messages use it.

    Raises:
        FastMTPError: From the constructor, for any of this that does not hold.
    """

    vocab_size: int
    tokenizer_fingerprint: str
    ids: Mapping[str, torch.Tensor]
    token_scripts: torch.Tensor
    routes: Mapping[str, str]
    source: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, list[str]] = field(default_factory=dict)
    own_tokens: int = 0
    own_coverage: Mapping[str, float] = field(default_factory=dict)
    origin: str = "in memory"

    def __post_init__(self) -> None:
        name = f"draft vocabulary {self.origin}"
        _check_languages(self.languages, name)
        for language, ids in self.ids.items():
            ordered = check_ids(
                ids, name=f"{name}, language '{language}'", vocab_size=self.vocab_size
            )
            if ids.dtype != torch.int64 or not torch.equal(ordered, ids):
                raise FastMTPError(
                    f"{name}, language '{language}': ids must be int64 in ascending order."
                )
        _check_token_scripts(self.token_scripts, self.vocab_size, name)
        _check_routes(self.routes, self.languages, name)
        _check_counts(self.counts, self.ids, name)
        _check_own_tokens(self.own_tokens, name)
        for language, share in (*self.coverage.items(), *self.own_coverage.items()):
            if language not in self.ids or not 0.0 <= share <= 1.0:
                raise FastMTPError(
                    f"{name}: coverage {share!r} of '{language}' is not a share of a listed "
                    "language."
                )

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that have a list; a position here is the index that kernels use."""
        return tuple(self.ids)

    def routing_table(self) -> torch.Tensor:
        """Return the list of every detected language.

        Returns:
            int64 [len(LANGUAGES) + 1]: position in `languages`, or -1 for the full vocabulary.
            Index it with the result of `decide_language`: UNDECIDED (-1) picks the last entry,
            which is -1.
        """
        positions = {language: index for index, language in enumerate(self.languages)}
        table = [positions[self.routes[name]] if name in self.routes else -1 for name in LANGUAGES]
        return torch.tensor([*table, -1], dtype=torch.int64)

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            FastMTPError: The folder of `path` does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FastMTPError(f"draft vocabulary {path}: the folder {path.parent} does not exist.")
        tensors = {"token_scripts": self.token_scripts.contiguous()}
        tensors |= {f"ids.{name}": ids.to(torch.int32) for name, ids in self.ids.items()}
        tensors |= {f"counts.{name}": counts.contiguous() for name, counts in self.counts.items()}
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "vocab_size": str(self.vocab_size),
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "languages": json.dumps(self.languages),
            "scripts": json.dumps([script.name for script in Script]),
            "routes": json.dumps(dict(self.routes)),
            "source": json.dumps(dict(self.source)),
            "coverage": json.dumps(dict(self.coverage)),
            "samples": json.dumps(dict(self.samples)),
            "own_tokens": json.dumps(self.own_tokens),
            "own_coverage": json.dumps(dict(self.own_coverage)),
        }
        write_atomically(path, _with_sorted_header(serialize(tensors, metadata=metadata)))

    @classmethod
    def load(
        cls, path: str | Path, *, vocab_size: int | None, tokenizer_fingerprint: str | None
    ) -> "DraftVocabulary":
        """Read and check a file.

        Args:
            path: A local file; it is never taken for the name of something to download.
            vocab_size: The target's `config.vocab_size`; None only to look at a file without a
                target.
            tokenizer_fingerprint: Of the target's tokenizer; None only to look at a file.

        Raises:
            FastMTPError: The file is missing, of another kind or version, for another tokenizer or
                vocabulary size, or holds ids that would draft from wrong rows.
        """
        path = Path(path)
        name = f"draft vocabulary {path}"
        metadata, tensors = _read(path, name)
        _check_version(metadata, name)
        try:
            header: dict[str, Any] = {key: json.loads(metadata[key]) for key in _JSON_KEYS}
            header |= {key: json.loads(metadata.get(key, text)) for key, text in _LATER_KEYS}
            fingerprint = metadata["tokenizer_fingerprint"]
            ids = {language: tensors[f"ids.{language}"] for language in header["languages"]}
            token_scripts = tensors["token_scripts"]
        except (KeyError, ValueError, TypeError) as error:
            raise FastMTPError(
                f"{name}: damaged, it lacks or garbles {error}. Build or import it again."
            ) from error
        listed_tensors = sorted(key for key in tensors if key.startswith("ids."))
        if listed_tensors != sorted(f"ids.{language}" for language in header["languages"]):
            raise FastMTPError(
                f"{name}: damaged, its header lists the languages {header['languages']} but it "
                f"holds {listed_tensors}. Build or import it again."
            )
        if vocab_size is not None and header["vocab_size"] != vocab_size:
            raise FastMTPError(
                f"{name}: made for a target with {header['vocab_size']} rows in its head, but this "
                f"one has {vocab_size} (config.vocab_size). Build or import it for this model."
            )
        if tokenizer_fingerprint is not None and fingerprint != tokenizer_fingerprint:
            raise FastMTPError(
                f"{name}: made for another tokenizer (fingerprint {fingerprint[:23]}..., this "
                f"model's is {tokenizer_fingerprint[:23]}...), so its ids mean other tokens here. "
                "Build or import it again with --model set to this model."
            )
        if header["scripts"] != [script.name for script in Script][: len(header["scripts"])]:
            raise FastMTPError(
                f"{name}: numbers the scripts in another way than this release. Build it again."
            )
        for language, listed in ids.items():
            # Widening could hide what check_ids must see, so it sees the file's own type first.
            check_ids(
                listed, name=f"{name}, language '{language}'", vocab_size=header["vocab_size"]
            )
        return cls(
            vocab_size=header["vocab_size"],
            tokenizer_fingerprint=fingerprint,
            ids={language: listed.to(torch.int64) for language, listed in ids.items()},
            token_scripts=token_scripts,
            routes=header["routes"],
            source=header["source"],
            counts={
                language: tensors[f"counts.{language}"]
                for language in ids
                if f"counts.{language}" in tensors
            },
            coverage=header["coverage"],
            samples=header["samples"],
            own_tokens=header["own_tokens"],
            own_coverage=header["own_coverage"],
            origin=str(path),
        )


def default_routes(
    languages: Sequence[str], overrides: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return which list serves which detected language.

    A list named like what detection answers serves it. Code without a list of its own drafts from
    the list of English, with which it shares most tokens.

    Args:
        languages: The lists.
        overrides: Detected language -> list, such as {"en": "de"} where all Latin text is German.
    """
    routes = {language: language for language in LANGUAGES if language in languages}
    routes |= overrides or {}
    if "en" in routes:
        routes.setdefault("code", routes["en"])
    return routes


def _with_sorted_header(data: bytes) -> bytes:
    """Sort the header of a serialized file, so that equal vocabularies are equal files.

    safetensors writes the keys of the metadata in random order.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _read(path: Path, name: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FastMTPError(
            f"{name}: no such file. It is a local path and is never downloaded; make one with "
            "`fastmtp vocab build` or `fastmtp vocab import`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            return file.metadata() or {}, {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        if path.suffix in _PICKLE_SUFFIXES:
            raise FastMTPError(
                f"{name}: a pickle file names neither its tokenizer nor its language. If it is a "
                f"plain list of ids, convert it: `fastmtp vocab import en={path} --model MODEL "
                f"--output {path.with_suffix('.safetensors').name}`."
            ) from error
        raise FastMTPError(f"{name}: not a safetensors file ({error}).") from error


def _check_version(metadata: Mapping[str, str], name: str) -> None:
    if metadata.get("format") != FORMAT:
        raise FastMTPError(
            f"{name}: a safetensors file, but not a draft vocabulary (its header has no "
            f"format={FORMAT}). Give the file that `fastmtp vocab` wrote."
        )
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise FastMTPError(
            f"{name}: has format version {version}; this release reads {FORMAT_VERSION}. Build it "
            "again, or install the release that wrote it."
        )


def _check_languages(languages: Sequence[str], name: str) -> None:
    if not languages:
        raise FastMTPError(f"{name}: lists no language. Without any, pass no vocabulary at all.")
    if len(languages) > MAX_LANGUAGES:
        raise FastMTPError(
            f"{name}: lists {len(languages)} languages, at most {MAX_LANGUAGES} fit."
        )
    for language in languages:
        if not LANGUAGE_NAME.fullmatch(language):
            raise FastMTPError(
                f"{name}: '{language}' is no language name; use lower-case letters, digits, '-' "
                "and '_', such as en or zh."
            )
        if language == FULL_VOCABULARY:
            raise FastMTPError(
                f"{name}: '{FULL_VOCABULARY}' is the name of the full vocabulary; choose another."
            )


def _check_own_tokens(number: Any, name: str) -> None:
    if type(number) is not int or number not in OWN_TOKENS:
        known = ", ".join(map(str, OWN_TOKENS))
        raise FastMTPError(f"{name}: own_tokens is {number!r}; it must be one of {known}.")


def _check_token_scripts(token_scripts: torch.Tensor, vocab_size: int, name: str) -> None:
    if token_scripts.dtype != torch.int8 or list(token_scripts.shape) != [vocab_size]:
        raise FastMTPError(
            f"{name}: token_scripts is {token_scripts.dtype} {list(token_scripts.shape)}; it must "
            f"be int8 [{vocab_size}], one script a token of the target."
        )
    if int(token_scripts.min()) < 0 or int(token_scripts.max()) >= len(Script):
        raise FastMTPError(
            f"{name}: token_scripts holds values that are no script of this release."
        )


def _check_routes(routes: Mapping[str, str], languages: Sequence[str], name: str) -> None:
    for detected, listed in routes.items():
        if detected not in LANGUAGES:
            raise FastMTPError(
                f"{name}: route from '{detected}', which is never detected; detection answers "
                f"{', '.join(LANGUAGES)}."
            )
        if listed not in languages:
            raise FastMTPError(
                f"{name}: route from '{detected}' to '{listed}', which has no list; there are "
                f"{', '.join(languages)}."
            )


def _check_counts(
    counts: Mapping[str, torch.Tensor], ids: Mapping[str, torch.Tensor], name: str
) -> None:
    for language, values in counts.items():
        if (
            language not in ids
            or values.shape != ids[language].shape
            or values.dtype != torch.int64
        ):
            raise FastMTPError(
                f"{name}: counts of '{language}' must be int64 and match the ids of that language."
            )
