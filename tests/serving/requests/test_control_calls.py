"""Calls that fail are answered: by the scheduler with a reply, by the tokenizer manager with 400.

Alone: pytest tests/serving/requests/test_control_calls.py
"""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest
import torch
from sglang.srt.managers import io_struct
from sglang.srt.managers.communicator import FanOutCommunicator
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.tokenizer_manager import TokenizerManager

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.requests import control_calls
from fastmtp_sglang.serving.requests.control_calls import Refused, UnusableWeightsError

CALLS = sorted(
    name
    for name in vars(io_struct)
    if name.endswith(("ReqInput", "Req"))
    and hasattr(io_struct, name.removesuffix("Input") + "Output")
)


@pytest.mark.parametrize("name", CALLS)
def test_every_reply_can_be_sent(name):
    call = type(name, (), {"session_id": "s"})()
    reply = control_calls.failed_reply(call, KeyError("kv_cache"))
    sent = io_struct.msgpack_decode(io_struct.msgpack_encode(reply))
    assert sent == reply
    fields = msgspec.structs.asdict(sent)
    assert not fields.get("success")
    assert "kv_cache" in fields["rid"]


def test_calls_are_found():
    assert len(CALLS) > 30
    assert control_calls.failed_reply(io_struct.AbortReq(), ValueError()) is None


@pytest.fixture
def scheduler(monkeypatch):
    """A scheduler that fails at all it is asked to do, with `error`."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: made.ranks)
    made = SimpleNamespace(ranks=1, error=None, aborted=[])

    def fail(*_):
        raise made.error

    def init(self):
        self._request_dispatcher = fail

    monkeypatch.setattr(Scheduler, "init_request_dispatcher", init)
    monkeypatch.setattr(Scheduler, "handle_generate_request", fail)
    control_calls.install_in_scheduler()
    control_calls.install_in_scheduler()
    made.send_abort_output = lambda abort, request: made.aborted.append(abort)
    Scheduler.init_request_dispatcher(made)
    return made


@pytest.mark.parametrize(
    ("error", "ranks"),
    [(AssertionError("not idle"), 1), (KeyError("x"), 1), (FastMTPError("no"), 2)],
)
def test_a_failing_call_gets_a_reply(scheduler, error, ranks):
    scheduler.error, scheduler.ranks = error, ranks
    reply = scheduler._request_dispatcher(io_struct.ReleaseMemoryOccupationReqInput())
    assert isinstance(reply, io_struct.ReleaseMemoryOccupationReqOutput)
    assert str(error) in reply.rid


@pytest.mark.parametrize(
    ("error", "ranks"), [(KeyError("x"), 2), (UnusableWeightsError("lost"), 1)]
)
def test_some_failures_end_the_server(scheduler, error, ranks):
    """One rank's alone would leave the others waiting; broken weights would go on answering."""
    scheduler.error, scheduler.ranks = error, ranks
    with pytest.raises(type(error)):
        scheduler._request_dispatcher(io_struct.ResumeMemoryOccupationReqInput())


def test_a_request_that_cannot_be_taken_in_is_aborted(scheduler):
    scheduler.error = KeyError("offset")
    Scheduler.handle_generate_request(scheduler, SimpleNamespace(rid="r"))
    (abort,) = scheduler.aborted
    assert (abort.rid, abort.finished_reason["status_code"]) == ("r", 400)
    assert "offset" in abort.finished_reason["message"]


def test_a_client_gets_400(monkeypatch):
    reply = control_calls.failed_reply(
        io_struct.SlowDownReqInput(forward_sleep_time=1), KeyError("x")
    )
    replies = [io_struct.SlowDownReqOutput()]

    async def call(communicator, obj):
        return replies

    async def profile(manager, req):
        raise RuntimeError("not in progress")

    monkeypatch.setattr(FanOutCommunicator, "__call__", call)
    monkeypatch.setattr(TokenizerManager, "_execute_profile", profile)
    control_calls.install_in_tokenizer_manager()
    control_calls.install_in_tokenizer_manager()
    assert asyncio.run(FanOutCommunicator.__call__(None, None)) == replies
    replies.append(reply)
    with pytest.raises(Refused, match="'x'") as refused:
        asyncio.run(FanOutCommunicator.__call__(None, None))
    assert refused.value.status_code == 400
    with pytest.raises(Refused, match="not in progress"):
        asyncio.run(TokenizerManager._execute_profile(None, None))
