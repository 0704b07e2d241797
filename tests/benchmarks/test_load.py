"""How many conversations are in flight, what a second turn is asked, and what a time limit does.

Alone: pytest tests/benchmarks/test_load.py
"""

import asyncio
import time

import pytest
import streaming_server as pieces

from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.load import Level, Outcome, fastest, press, warm_up_task
from fastmtp_benchmarks.native import NativeEndpoint
from fastmtp_benchmarks.task import Conversation, Task
from fastmtp_sglang.errors import FastMTPError


def task(count: int, turns: int = 1, **fields) -> Task:
    questions = tuple(f"q{turn}" for turn in range(turns))
    return Task("t", tuple(Conversation(f"p{i}", questions, **fields) for i in range(count)))


@pytest.fixture
def hold(server):
    def run(task, level, **options):
        server.sent = []

        def encode(messages):
            server.sent.append([(m["role"], m["content"]) for m in messages])
            return [len(messages)]

        async def once():
            async with NativeEndpoint(server.url, retries=0, pause=0.01) as endpoint:
                endpoint.encode = encode
                sampling = options.pop("sampling", Sampling())
                return await press(endpoint, "c", task, level, sampling, **options)

        return asyncio.run(once())

    return run


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_conversations_than_asked_for_are_in_flight(hold, server, concurrency):
    def answer(_):
        # However long this machine takes to send as many as may be.
        deadline = time.monotonic() + 20
        while server.most_in_flight < concurrency and time.monotonic() < deadline:
            time.sleep(0.01)
        return [0.05, *pieces.native_answer([1, 2, 3])]

    server.answers = answer
    outcome = hold(task(7), Level(concurrency=concurrency))
    assert server.most_in_flight == concurrency
    assert [record.prompt_id for record in outcome.records] == [f"p{i}" for i in range(7)]
    assert all(record.error is None for record in outcome.records)
    assert outcome.wall_seconds >= 0.05 * 7 / concurrency


def test_a_second_turn_holds_the_first_answer(hold, server):
    server.answers = lambda body: pieces.native_answer([1], f"answer to {body['input_ids']}")
    outcome = hold(task(1, turns=2, system="be brief"), Level(concurrency=4))
    assert server.sent[1] == [
        ("system", "be brief"),
        ("user", "q0"),
        ("assistant", "answer to [2]"),
        ("user", "q1"),
    ]
    assert [record.turn for record in outcome.records] == [0, 1]
    assert outcome.records[0].prompt_digest != outcome.records[1].prompt_digest


@pytest.mark.heavy
def test_turns_after_a_failed_one_fail_without_being_asked(hold, server):
    server.first = [(400, {"error": "no"})]
    outcome = hold(task(1, turns=3), Level(concurrency=1))
    assert len(server.requests) == 1
    assert [record.attempts for record in outcome.records] == [1, 0, 0]
    assert "HTTP 400" in outcome.records[0].error
    assert outcome.records[2].error == "an earlier turn of the conversation failed"


@pytest.mark.heavy
def test_a_time_limit_leaves_out_what_has_not_begun(hold, server):
    server.answers = lambda body: [0.5, *pieces.native_answer([1, 2])]
    outcome = hold(task(10), Level(concurrency=2), time_limit=0.9)
    # At 0 and 0.5 seconds two each, unless this machine is late.
    assert 2 <= len(outcome.records) <= 4
    assert outcome.conversations_left_out == 10 - len(outcome.records)
    assert all(record.error is None for record in outcome.records)


@pytest.mark.heavy
def test_poisson_arrivals_do_not_wait_for_answers(hold, server):
    server.answers = lambda body: [0.6, *pieces.native_answer([1, 2])]
    outcome = hold(task(20), Level(rate=50.0), seed=1)
    assert server.most_in_flight > 5
    assert outcome.wall_seconds < 20 * 0.6
    assert len(outcome.records) == 20


def test_a_conversation_may_fix_the_output_length(hold, server):
    hold(task(1, output_length=5), Level(concurrency=1), sampling=Sampling(max_new_tokens=100))
    assert server.requests[0]["sampling_params"] == {
        "temperature": 0.0,
        "max_new_tokens": 5,
        "ignore_eos": True,
    }


def test_chunks_without_token_counts_give_no_arrivals(hold, server):
    chunk = {"text": "a", "output_ids": [1], "meta_info": {"finish_reason": {"type": "stop"}}}
    server.answers = lambda body: [pieces.sse(chunk), pieces.DONE]
    record = hold(task(1), Level(concurrency=1)).records[0]
    assert (record.output_tokens, len(record.arrivals)) == (1, 1)


def test_a_refused_key_ends_the_run_as_itself(hold, server):
    server.key = "k"
    with pytest.raises(FastMTPError, match="--api-key"):
        hold(task(5), Level(concurrency=3))


def test_warm_up_asks_nothing_that_is_measured():
    measured = Task("t", (Conversation("a", ("q0", "q1"), "s"), Conversation("b", ("q2",))))
    warm = warm_up_task(measured, 8)
    assert [c.turns for c in warm.conversations] == [("Warm-up 0. q0",), ("Warm-up 1. q2",)]
    assert warm.conversations[0].system == "s"


def test_the_fastest_run_of_each_conversation(record):
    one = [record("a", [(1.0, 1)]), record("b", [(5.0, 1)]), record("c", error="HTTP 500")]
    two = [record("a", [(2.0, 1)]), record("b", [(4.0, 1)]), record("c", [(1.0, 1)])]
    best = fastest([Outcome(one, 9.0, 1), Outcome(two, 8.0, 0)])
    assert [r.seconds for r in best.records] == [1.0, 4.0, None]
    assert best.records[2].error == "HTTP 500"
    assert (best.wall_seconds, best.conversations_left_out) == (8.0, 0)
