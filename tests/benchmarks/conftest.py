"""Servers in threads, and records of a test's own making."""

import pytest
from streaming_server import server, servers

from fastmtp_benchmarks.records import Record, SpecCounters


@pytest.fixture
def record():
    """Make a record; `arrivals` gives tokens and times unless they are given."""

    def make(
        prompt_id: str = "a",
        arrivals: list[tuple[float, int]] | None = None,
        *,
        counters: tuple[int, int] | tuple[int, int, list[int]] | None = None,
        **fields,
    ) -> Record:
        values = {"configuration": "fastmtp", "task": "t", "turn": 0, "prompt_tokens": 3}
        if arrivals:
            values |= {
                "arrivals": arrivals,
                "output_tokens": arrivals[-1][1],
                "seconds": arrivals[-1][0],
                "first_token_seconds": arrivals[0][0],
            }
        if counters:
            verified, accepted, *histogram = counters
            values["speculation"] = SpecCounters(
                verifications=verified,
                accepted_drafts=accepted,
                histogram=histogram[0] if histogram else None,
            )
        return Record(prompt_id=prompt_id, **(values | fields))

    return make
