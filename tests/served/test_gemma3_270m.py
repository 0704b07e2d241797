"""Gemma 3 270M, a base model of 262,144 tokens: FASTMTP's greedy answers are its own.

Texts are sent as they are, in six languages and code, one at a time and sixteen together; the
server's tokenizer puts BOS before them. The head is untrained, a copy of the target's last layer:
for equality that is the harder case, since nearly every draft is rejected.

Alone: pytest -m slow tests/served/test_gemma3_270m.py (starts four servers of 1 GB)
"""

import pytest
from client import Answer, assert_equal, generate_all

from fastmtp_sglang.cli.demo import CONTINUATIONS
from fastmtp_sglang.files import cache
from fastmtp_sglang.models.catalog import GEMMA3_270M
from fastmtp_sglang.servers import launch
from fastmtp_sglang.servers.server_process import ServerProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (cache.directory() / GEMMA3_270M.folder).is_dir(),
        reason="needs `fastmtp serve gemma3-270m --accept-license --dry-run`",
    ),
]
CASES = [(text + more, 40) for more in ("", " ") for _, text in CONTINUATIONS]


def answers(log_path, dtype: str, *, speculation: bool) -> tuple[list[Answer], list[Answer]]:
    """One at a time (the first eight), and all sixteen together."""
    _, model, *flags = launch.arguments(
        "gemma3-270m", ["--disable-radix-cache"], speculation=speculation, dtype=dtype
    )
    with ServerProcess(model, flags, log_path=log_path) as server:
        alone = generate_all(server.url, CASES[:8], concurrency=1)
        return alone, generate_all(server.url, CASES, concurrency=16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_greedy_answers_are_those_without_speculation(tmp_path, dtype):
    plain, plain_16 = answers(tmp_path / "plain.log", dtype, speculation=False)
    fast, fast_16 = answers(tmp_path / "fast.log", dtype, speculation=True)
    assert_equal(fast, plain)
    assert_equal(fast_16, plain_16)
    assert_equal(plain_16[:8], plain)
    assert all(answer.meta["spec_verify_ct"] > 0 for answer in fast_16 if len(answer.ids) > 1)
    # Each prompt has one token more than its text.
    assert "sun" in fast[0].text
