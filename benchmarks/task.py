"""A task: conversations that are reported together. `tasks`, `hub` and `shapes` make them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """User turns, asked in order; `output_length` fixes the tokens of every answer."""

    id: str
    turns: tuple[str, ...]
    system: str | None = None
    output_length: int | None = None


@dataclass(frozen=True)
class Task:
    """Conversations that are reported together."""

    name: str
    conversations: tuple[Conversation, ...]

    @property
    def digest(self) -> str:
        """Changes with whatever is asked."""
        content = json.dumps(
            [(c.id, c.turns, c.system, c.output_length) for c in self.conversations]
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]
