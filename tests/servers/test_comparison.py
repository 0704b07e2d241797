"""The arithmetic of a comparison, and the client that feeds it, against answers of our own making.

Alone: pytest tests/servers/test_comparison.py
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers.comparison import (
    Answer,
    Comparison,
    acceptance_length,
    ask,
    first_difference,
    tokens_per_second,
    unsteadiness,
)


def answer(ids, seconds=1.0, verifications=None, accepted=None) -> Answer:
    return Answer("", tuple(ids), seconds, verifications, accepted)


def test_acceptance_length_is_over_all_answers_not_a_mean_of_means():
    # 10 verifications accept 10, 90 accept nothing: 1.1, while the mean of the two would be 1.5.
    answers = [answer(range(20), 1, 10, 10), answer(range(91), 1, 90, 0)]
    assert acceptance_length(answers) == pytest.approx(1.1)


def test_nothing_accepted_is_exactly_one():
    assert acceptance_length([answer(range(24), 1, 23, 0)]) == 1.0


def test_one_token_answers_have_no_counters():
    assert acceptance_length([answer([7])]) is None
    assert acceptance_length([answer([7]), answer(range(5), 1, 2, 2)]) == 2.0


def test_missing_counters_are_an_error_and_never_read_as_one():
    with pytest.raises(FastMTPError, match="no speculation counters for an answer of 2 tokens"):
        acceptance_length([answer(range(5), 1, 2, 2), answer([7, 8])])


def test_tokens_per_second_weighs_by_time():
    assert tokens_per_second([answer(range(10), 1.0), answer(range(10), 4.0)]) == 4.0


def test_unsteadiness_is_about_steps_and_passes_over_short_answers():
    assert unsteadiness([answer(range(64), 4.0), answer(range(64), 2.0)]) == 2.0
    assert unsteadiness([answer(range(64), 4.0), answer(range(3), 4.0)]) == 1.0
    # Twice the tokens per second through acceptance is no unrest of the machine.
    accepts = [answer(range(64), 4.0, 63, 0), answer(range(64), 2.0, 32, 32)]
    assert unsteadiness(accepts) == pytest.approx(1.0, abs=0.02)
    assert unsteadiness([]) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "position"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 9, 3], 1),
        ([1, 2, 3], [1, 2], 2),
        ([], [1], 0),
    ],
)
def test_first_difference(one, other, position):
    assert first_difference(answer(one), answer(other)) == position


def test_summary():
    baseline = (answer([1, 2], 2.0), answer([3, 4], 2.0))
    fastmtp = (answer([1, 2], 1.0, 1, 0), answer([3, 5], 1.0, 1, 1))
    comparison = Comparison(baseline, fastmtp)
    assert comparison.summary() == {
        "requests": 2,
        "identical": 1,
        "acceptance_length": 1.5,
        "tokens_per_second": {"baseline": 1.0, "fastmtp": 2.0},
        "speedup": 2.0,
    }
    assert not comparison.all_identical
    assert Comparison(baseline, baseline).all_identical


def test_answers_must_come_in_pairs():
    with pytest.raises(ValueError, match="zip"):
        _ = Comparison((answer([1]),), ()).identical


@pytest.fixture
def server():
    """Serve what the test puts into `reply`: (status, body); keeps the last request in `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = server.reply
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


FINAL = {
    "text": "Hello you",
    "output_ids": [4, 5],
    "meta_info": {"spec_verify_ct": 1, "spec_num_correct_drafts": 0},
}


def events(*items: dict) -> str:
    return "".join(f"data: {json.dumps(item)}\n\n" for item in items) + "data: [DONE]\n\n"


def test_ask(server):
    server.reply = 200, json.dumps(FINAL)
    got = ask(server.url, "Hi", 5)
    assert (got.text, got.token_ids) == ("Hello you", (4, 5))
    assert (got.verifications, got.accepted_drafts) == (1, 0)
    assert 0 < got.seconds < 5
    assert server.asked == {
        "text": "Hi",
        "sampling_params": {"temperature": 0, "max_new_tokens": 5},
        "stream": False,
    }


def test_ask_without_counters(server):
    server.reply = 200, json.dumps({**FINAL, "meta_info": {}})
    assert ask(server.url, "Hi", 5).verifications is None


def test_streamed_text_arrives_in_pieces(server):
    server.reply = 200, events({**FINAL, "text": "Hel", "output_ids": [4]}, FINAL)
    pieces = []
    got = ask(server.url, "Hi", 5, pieces.append)
    assert pieces == ["Hel", "lo you"]
    assert got.token_ids == (4, 5)
    assert server.asked["stream"] is True


def test_characters_that_python_takes_for_line_ends(server):
    text = "a\u2028b\u0085c\rd"
    event = json.dumps({**FINAL, "text": text}, ensure_ascii=False)
    server.reply = 200, f"data: {event}\n\ndata: [DONE]\n\n"
    assert ask(server.url, "Hi", 5, lambda piece: None).text == text


ABORT = {"type": "abort", "message": "out of memory"}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, "the prompt is too long"), "answered 400: the prompt is too long"),
        ((200, events({"error": {"message": "boom"}})), "failed while streaming: .*boom"),
        ((200, events()), "streamed no answer"),
        (
            (200, events({"text": "", "output_ids": [], "meta_info": {"finish_reason": ABORT}})),
            "gave an answer up: out of memory",
        ),
    ],
)
def test_refusals_are_passed_on(server, reply, message):
    server.reply = reply
    with pytest.raises(FastMTPError, match=message):
        ask(server.url, "Hi", 5, lambda text: None)


def test_a_dead_server_is_named():
    with pytest.raises(FastMTPError, match="broke off while answering"):
        ask("http://127.0.0.1:1", "Hi", 5)


def test_a_proxy_of_the_environment_is_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    server.reply = 200, json.dumps(FINAL)
    assert ask(server.url, "Hi", 5).token_ids == (4, 5)
