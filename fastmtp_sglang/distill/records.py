"""The record of distillation data: one answered turn, one JSON line.

`fastmtp distill` writes it; `fastmtp data clean`, `fastmtp train` and `fastmtp vocab build` read
it. Token ids are what the server got and gave: nobody tokenizes a text again.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.jsonl import read_jsonl

# In the folder that `fastmtp distill` fills.
MANIFEST = "manifest.json"

FinishReason = Literal["stop", "length"]


class Message(BaseModel):
    """One message of a conversation, as a chat template takes it."""

    role: str
    content: str


class Sampling(BaseModel):
    """How a text was sampled; `top_k` -1 and `top_p` 1 keep all tokens."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int


class Record(BaseModel):
    """One answered turn.

    Attributes:
        id: `SOURCE/INDEX/SAMPLE/TURN`: the same request has the same id in every run.
        conversation: `SOURCE/INDEX/SAMPLE`.
        turn: From 0.
        source: Name of the prompt source, `self` for self-prompting.
        messages: The history up to and including the user turn that is answered.
        prompt_ids: What the server was sent: the chat template applied once, one BOS.
        answer_ids: What the server generated, the stop token (end of turn) included.
        answer: The answer's text, without the stop token.
        finish_reason: "length" for an answer that was cut.
        sampling: As sent.
        model: The target, as `--model` named it.
    """

    # Fields that other tools add travel through `fastmtp data clean`.
    model_config = ConfigDict(extra="allow")

    id: str
    conversation: str
    turn: int
    source: str
    messages: list[Message]
    prompt_ids: list[int]
    answer_ids: list[int]
    answer: str
    finish_reason: FinishReason
    sampling: Sampling
    model: str

    def line(self) -> bytes:
        """Return the record as one line of JSON with its line end."""
        return json_line(self.model_dump())


def json_line(content: dict[str, Any]) -> bytes:
    """Return an object as one line of UTF-8 JSON with its line end."""
    # A lone surrogate (half of a broken character in a prompt) is no UTF-8: escaped it survives.
    text = json.dumps(content, ensure_ascii=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(content)}\n".encode()


def parse_record(line: bytes, place: str) -> Record:
    """Read one line back; `place` names it in the FastMTPError for a line that is no record."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FastMTPError(f"{place}: not valid JSON ({error})") from error
    return check_record(content, place)


def check_record(content: Any, place: str) -> Record:
    """Return what a line holds as a record; raises FastMTPError as above."""
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise FastMTPError(
            f"{place}: {field}: {first['msg'].lower()}; this is no record of `fastmtp distill`"
        ) from error


def record_files(paths: Sequence[Path]) -> list[Path]:
    """Return the JSON-lines files among `paths`, which are files or folders of shards.

    Raises FastMTPError for a path that is missing, and for a folder without `*.jsonl`.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        # A folder of `fastmtp distill` may by now also hold a cleaned file.
        pattern = "shard-*.jsonl" if (path / MANIFEST).is_file() else "*.jsonl"
        found = sorted(file for file in path.glob(pattern) if file.is_file())
        if not found:
            missing = f"holds no finished shard ({pattern})" if path.is_dir() else "does not exist"
            raise FastMTPError(f"{path} {missing}: give what `fastmtp distill --output` wrote")
        files += found
    return files


def read_records(paths: Sequence[Path]) -> Iterator[Record]:
    """Yield the records of files and folders of shards; raises FastMTPError as above."""
    for file in record_files(paths):
        for row in read_jsonl(file):
            yield check_record(row.content, row.place)
