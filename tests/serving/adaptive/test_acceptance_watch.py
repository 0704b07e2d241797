"""A head whose drafts are never accepted is named in the log, once."""

import pytest

from fastmtp_sglang.serving.adaptive.acceptance_watch import AcceptanceWatch
from fastmtp_sglang.serving.worker import FastMTPWorker


def verify(watch, caplog, accepted_of_hundred: int) -> list[str]:
    """The warnings of ten thousand first drafts, or of those up to the first warning."""
    caplog.clear()
    for _ in range(100):
        watch.observe([2] * accepted_of_hundred + [0] * (100 - accepted_of_hundred))
        if caplog.records:
            break
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("accepted_of_hundred", "warns"), [(0, True), (4, True), (5, False)])
def test_a_useless_head_is_named(caplog, accepted_of_hundred, warns):
    messages = verify(AcceptanceWatch(), caplog, accepted_of_hundred)
    assert bool(messages) == warns
    if warns:
        assert f"Only {accepted_of_hundred}.0 % of the last 1000 first drafts" in messages[0]
        assert "fastmtp train" in messages[0]


def test_it_warns_again_only_after_better_times(caplog):
    watch = AcceptanceWatch()
    assert verify(watch, caplog, 0)
    assert not verify(watch, caplog, 1)
    assert not verify(watch, caplog, 50)
    assert len(verify(watch, caplog, 1)) == 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_worker_watches_unless_shapes_are_chosen(caplog, adaptive):
    class Policy:
        def learn(self, emitted):
            seen.extend(emitted)

    seen: list[tuple[str, int]] = []
    worker = object.__new__(FastMTPWorker)
    worker._watch = None if adaptive else AcceptanceWatch()
    worker._adaptive = Policy() if adaptive else None
    for _ in range(1000):
        worker.on_verify_complete_cpu([0], batch_size=1)
        worker._learn([("a", 0)])
    assert len(caplog.records) == (0 if adaptive else 1)
    assert seen == ([("a", 0)] * 1000 if adaptive else [])
