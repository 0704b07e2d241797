"""What is measured against what: served endpoints, or servers that are started here.

baseline         the model without speculation
nextn            SGLang's own NEXTN over the MTP layer in the model's files
fastmtp          FASTMTP, drafting from all tokens
fastmtp+vocab    FASTMTP over the draft vocabulary
NAME=FLAGS       any flags of `sglang serve`, such as "k1=--speculative-algorithm FASTMTP ..."
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models import catalog
from fastmtp_sglang.servers import launch
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary

BASELINE = "baseline"
PRESETS = (BASELINE, "nextn", "fastmtp", "fastmtp+vocab")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
_DEFAULT_NUM_STEPS = 3
_KEY = re.compile(r"(--(?:admin-)?api-key[= ]+)[^\s'\"]+")


@dataclass(frozen=True)
class Configuration:
    """A name with a URL, or with the arguments that follow `sglang serve`."""

    name: str
    url: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def served(self) -> str:
        """What tells two runs of one name apart, in words."""
        return self.url or redacted(shlex.join(self.arguments))


@dataclass(frozen=True)
class Model:
    """What servers that are started here serve.

    Attributes:
        name: Directory, Hugging Face name, or built-in model.
        draft: Head directory; None for the MTP layer in the model's files (a built-in
            model's head).
        num_steps: K; None for the default.
        vocabulary: Draft vocabulary file; None for the one beside the head.
        flags: Of `sglang serve`, for every configuration.
    """

    name: str
    draft: str | None = None
    num_steps: int | None = None
    vocabulary: Path | None = None
    flags: tuple[str, ...] = ()

    def command(
        self,
        *,
        speculation: bool = False,
        draft: str | None = None,
        num_steps: int | None = None,
        vocabulary: Path | None = None,
        flags: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """Return the arguments after `sglang serve`; raises FastMTPError as `launch.arguments`."""
        arguments = launch.arguments(
            self.name,
            [*self.flags, *flags],
            draft=draft,
            num_steps=num_steps,
            vocabulary=vocabulary,
            speculation=speculation,
        )
        return tuple(arguments)


def redacted(command: str) -> str:
    """Return a command line without the keys in it, since it goes into the report."""
    return _KEY.sub(r"\1...", command)


def parse_endpoints(given: Sequence[str]) -> list[Configuration]:
    """Read `NAME=URL` or a bare URL, whose name is its host and port; raises FastMTPError."""
    found = []
    for text in given:
        name, separator, url = text.partition("=")
        if not separator or "://" in name:
            name, url = text.partition("://")[2].strip("/").replace(":", "-"), text
        if not url.startswith(("http://", "https://")):
            raise FastMTPError(
                f"--endpoint {text}: give NAME=URL with a URL such as http://127.0.0.1:30000"
            )
        found.append(Configuration(_checked(name, "--endpoint", text), url=url.rstrip("/")))
    _refuse_repeated(found, "--endpoint")
    return found


def make_configurations(
    given: Sequence[str], model: Model, directory: Path, progress: cache.Progress = cache.silent
) -> list[Configuration]:
    """Return the server commands of the named configurations.

    Args:
        given: See the module's docstring.
        model: What to serve.
        directory: Of the benchmark; may get a copy of the head's folder, see `full_head`.
        progress: Receives lines for people.

    Raises:
        FastMTPError: An unknown name, flags that cannot be read, or files that do not exist.
    """
    names = [text.partition("=")[0] for text in given]
    for flag, value, users in (
        ("--draft", model.draft, ("fastmtp", "fastmtp+vocab")),
        ("--num-steps", model.num_steps, ("nextn", "fastmtp", "fastmtp+vocab")),
        ("--vocabulary", model.vocabulary, ("fastmtp+vocab",)),
    ):
        if value is not None and not set(users) & set(names):
            raise FastMTPError(
                f"{flag} {value}: has no effect without --configuration {' or '.join(users)}"
            )
    draft = model.draft
    ours = catalog.find(model.name)
    if ours is not None and draft is None and any("fastmtp" in name for name in given):
        head = ours.draft_head(model.num_steps, progress)
        draft = str(head.path)
        model = replace(model, num_steps=model.num_steps or head.num_steps)
        if not head.trained:
            progress("the draft head is untrained: drafts are rejected and only cost time")
    found = []
    for text in given:
        name, separator, flags = text.partition("=")
        if separator:
            arguments = model.command(flags=_split(text, flags))
        elif name == BASELINE:
            arguments = model.command()
        elif name == "nextn":
            arguments = model.command(flags=_nextn(model.num_steps or _DEFAULT_NUM_STEPS))
        elif name == "fastmtp":
            arguments = fastmtp(model, draft, model.num_steps, None, directory)
        elif name == "fastmtp+vocab":
            vocabulary = model.vocabulary or _beside(draft)
            if vocabulary is None:
                raise FastMTPError(
                    "--configuration fastmtp+vocab: needs --vocabulary FILE, made by `fastmtp "
                    "vocab build`, as there is none beside the head"
                )
            arguments = fastmtp(model, draft, model.num_steps, vocabulary, directory)
        else:
            raise FastMTPError(
                f"--configuration {text}: unknown; give one of {', '.join(PRESETS)}, or NAME=FLAGS"
            )
        found.append(Configuration(_checked(name, "--configuration", text), arguments=arguments))
    _refuse_repeated(found, "--configuration")
    return found


def fastmtp(
    model: Model,
    draft: str | None,
    num_steps: int | None,
    vocabulary: Path | None,
    directory: Path,
    flags: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the arguments that serve FASTMTP over exactly `vocabulary`, None for all tokens."""
    if vocabulary is None and draft is not None:
        draft = full_head(draft, directory)
    return model.command(
        speculation=True, draft=draft, num_steps=num_steps, vocabulary=vocabulary, flags=flags
    )


def full_head(draft: str, directory: Path) -> str:
    """Return a head directory that is drafted with over all tokens.

    A vocabulary beside a head is used without a flag, so such a head gets a folder of links to its
    other files, under `directory`.
    """
    source = Path(draft)
    if _beside(draft) is None:
        return draft
    links = directory / "heads" / source.absolute().name
    links.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name != Path(FILE_NAME).parts[0] and not (links / file.name).exists():
            (links / file.name).symlink_to(file.absolute())
    return str(links)


def vocabulary_size(path: str | None) -> int | None:
    """Return the tokens of the largest list of a draft vocabulary; None where it is not told."""
    if path is None or not Path(path).is_file():
        return None  # served from another machine, or no vocabulary
    try:
        vocabulary = DraftVocabulary.load(path, vocab_size=None, tokenizer_fingerprint=None)
    except FastMTPError:
        return None  # a token map of SGLang's own format
    return max(len(ids) for ids in vocabulary.ids.values())


def _nextn(num_steps: int) -> list[str]:
    return [
        *("--speculative-algorithm", "NEXTN", "--speculative-num-steps", str(num_steps)),
        *("--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(num_steps + 1)),
    ]


def _beside(draft: str | None) -> Path | None:
    path = Path(draft) / FILE_NAME if draft is not None else None
    return path if path is not None and path.is_file() else None


def _split(text: str, flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise FastMTPError(f"--configuration {text}: its quotes do not close ({error})") from error


def _checked(name: str, flag: str, text: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise FastMTPError(
            f"{flag} {text}: the name {name!r} must be of letters, digits and + . _ -, since files "
            "are named after it"
        )
    return name


def _refuse_repeated(found: Sequence[Configuration], flag: str) -> None:
    names = [configuration.name for configuration in found]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise FastMTPError(f"{flag}: the name {repeated} is given twice: choose another one")
