"""An administrative call that fails is answered; it does not end the server.

SGLang's scheduler carries such calls out in its event loop, where an exception ends the server with
every request in it. `install_in_scheduler` turns the exception into the call's reply, and
`install_in_tokenizer_manager`, in the process that clients talk to, the reply into HTTP 400. A
request that the scheduler cannot take in is aborted in the same way.

With several ranks only a `FastMTPError` is answered, which all of them raise before they do
anything: after any other exception of one rank the others might wait for it for ever.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from fastapi import HTTPException

from fastmtp_sglang.errors import FastMTPError

if TYPE_CHECKING:
    from sglang.srt.managers.communicator import FanOutCommunicator
    from sglang.srt.managers.io_struct import ProfileReq, TokenizedGenerateReqInput
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)

# Not every kind of reply has a field for an error; all have the id of a request, unused there.
_FAILED = "failed: "
# Of each forward pass, by /slow_down; the scheduler can be told to stop only between two of them.
_LONGEST_SLEEP = 60
# What their other fields hold.
_NOTHING: dict[str, object] = {
    "success": False,
    "updated": False,
    "parameter": None,
    "response": [],
    "layout": {},
    "internal_state": {},
}


class Refused(HTTPException):
    """An administrative call that could not be carried out; a client sees HTTP 400."""

    def __init__(self, reason: str) -> None:
        super().__init__(status_code=400, detail=reason)

    def __str__(self) -> str:
        return self.detail


class UnusableWeightsError(Exception):
    """The model's weights are of two checkpoints: better no server than one that answers."""


def failed_reply(call: Any, error: Exception) -> Any:
    """Return SGLang's reply to `call`, saying that it failed; None for a call without replies.

    Args:
        call: one of the messages of SGLang's `io_struct`.
        error: what happened.
    """
    from sglang.srt.managers import io_struct

    reply = getattr(io_struct, type(call).__name__.removesuffix("Input") + "Output", None)
    if reply is None:
        return None
    reason = str(error) or type(error).__name__
    values = {
        **_NOTHING,
        "rid": _FAILED + reason,
        "message": reason,
        "session_id": getattr(call, "session_id", None),
    }
    return reply(
        **{name: value for name, value in values.items() if name in reply.__struct_fields__}
    )


def install_in_scheduler() -> None:
    """Let SGLang's scheduler answer calls that fail, in this process; idempotent."""
    from sglang.srt.managers.scheduler import Scheduler

    stock_init, stock_generate = (
        Scheduler.init_request_dispatcher,
        Scheduler.handle_generate_request,
    )
    if stock_init.__module__ == __name__:
        return

    def init_request_dispatcher(scheduler: Scheduler) -> None:
        stock_init(scheduler)
        dispatch = scheduler._request_dispatcher

        def guarded(call: Any) -> Any:
            try:
                _refuse_long_sleep(call)
                return dispatch(call)
            except Exception as error:
                if not _may_go_on(error):
                    raise
                _log(type(call).__name__, error)
                return failed_reply(call, error)

        scheduler._request_dispatcher = guarded

    def handle_generate_request(
        scheduler: Scheduler, recv_req: TokenizedGenerateReqInput, **kwargs: Any
    ) -> None:
        from sglang.srt.managers.io_struct import AbortReq

        try:
            stock_generate(scheduler, recv_req, **kwargs)
        except Exception as error:
            if not _may_go_on(error):
                raise
            _log("request", error)
            reason = {"type": "abort", "status_code": 400, "message": str(error)}
            abort = AbortReq(rid=recv_req.rid, finished_reason=reason)
            scheduler.send_abort_output(abort, recv_req)

    Scheduler.init_request_dispatcher = init_request_dispatcher
    Scheduler.handle_generate_request = handle_generate_request


def install_in_tokenizer_manager() -> None:
    """Let SGLang's tokenizer manager answer such replies with HTTP 400; idempotent."""
    from sglang.srt.managers.communicator import FanOutCommunicator
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    stock_call, stock_profile = FanOutCommunicator.__call__, TokenizerManager._execute_profile
    if stock_call.__module__ == __name__:
        return

    async def call(communicator: FanOutCommunicator, obj: Any) -> list[Any]:
        replies = await stock_call(communicator, obj)
        for reply in replies:
            if (reply.rid or "").startswith(_FAILED):
                raise Refused(reply.rid.removeprefix(_FAILED))
        return replies

    async def execute_profile(manager: TokenizerManager, req: ProfileReq) -> Any:
        try:
            return await stock_profile(manager, req)
        except RuntimeError as error:
            raise Refused(str(error)) from error

    FanOutCommunicator.__call__ = call
    TokenizerManager._execute_profile = execute_profile


def _refuse_long_sleep(call: Any) -> None:
    seconds = getattr(call, "forward_sleep_time", None)
    if seconds is not None and not seconds <= _LONGEST_SLEEP:
        raise FastMTPError(f"forward_sleep_time {seconds} is above {_LONGEST_SLEEP} seconds.")


def _may_go_on(error: Exception) -> bool:
    if isinstance(error, UnusableWeightsError):
        return False
    return isinstance(error, FastMTPError) or torch.distributed.get_world_size() == 1


def _log(what: str, error: Exception) -> None:
    expected = isinstance(error, FastMTPError)
    logger.warning("%s failed: %s", what, error, exc_info=None if expected else error)
