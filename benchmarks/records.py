"""One line of the request files: what a client saw of one turn of one conversation.

Times are seconds of a monotonic clock since the request was sent (of its last attempt). What a
server does not tell is None, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class SpecCounters(BaseModel):
    """A server's counts of its verifications, over one answer or a whole run.

    Attributes:
        verifications: Forward passes of the target that verified drafts.
        accepted_drafts: Draft tokens of theirs that were emitted; the target's own do not count.
        histogram: Entry j is the number of verifications that accepted j drafts.
    """

    verifications: int
    accepted_drafts: int
    histogram: list[int] | None = None

    def emitted(self, tokens: int) -> SpecCounters:
        """Return the counters without drafts that are not among `tokens`.

        Servers also count what was accepted behind the end of an answer. `tokens` are those after
        the first ones, which are the prefill's; each verification adds one in any case. How many
        drafts the last verification accepted is not told, so the histogram is lost.
        """
        most = max(tokens - self.verifications, 0)
        if self.accepted_drafts <= most:
            return self
        return SpecCounters(verifications=self.verifications, accepted_drafts=most)


class Record(BaseModel):
    """One turn.

    Attributes:
        prompt_id: Id of the conversation within its task.
        turn: Position of the user turn, from 0.
        prompt_digest: Tells whether two runs asked the same: a second turn holds the first answer.
        error: Why there is no answer, in words; everything below is then None or empty.
        attempts: Requests sent, retries included; 0 for a turn whose predecessor failed.
        lost_seconds: From the first request to the last one, or to the end of one that failed too.
        output_tokens: From usage or token ids, never from counting chunks.
        token_ids: None where the endpoint gives none; answers are then compared as text.
        text: The answer without its reasoning.
        reasoning: What the server separated as reasoning.
        seconds: From sending to the last chunk that brought tokens.
        first_token_seconds: From sending to the first one.
        arrivals: Per chunk that brought tokens: seconds, and tokens of the answer so far. None
            where the endpoint does not say how many tokens a chunk holds.
        speculation: The server's counters of this answer.
    """

    model_config = ConfigDict(extra="forbid")

    configuration: str
    task: str
    prompt_id: str
    turn: int
    prompt_digest: str = ""
    error: str | None = None
    attempts: int = 1
    lost_seconds: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    token_ids: list[int] | None = None
    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    seconds: float | None = None
    first_token_seconds: float | None = None
    arrivals: list[tuple[float, int]] | None = None
    speculation: SpecCounters | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What the same turn has in common between two runs."""
        return self.task, self.prompt_id, self.turn

    def first_difference(self, other: Record) -> int | None:
        """Return the first position in which two answers differ, None if they are identical.

        Counted in tokens where both have token ids, else in characters.
        """
        mine: Sequence[int | str]
        others: Sequence[int | str]
        if self.token_ids is not None and other.token_ids is not None:
            mine, others = self.token_ids, other.token_ids
        else:
            mine, others = self.reasoning + self.text, other.reasoning + other.text
        pairs = zip(mine, others, strict=False)
        differing = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if differing is None and len(mine) != len(others):
            return min(len(mine), len(others))
        return differing
