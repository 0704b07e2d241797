"""A session's whole history can be replaced: SGLang clears a map while it walks over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.session.session_controller import Session


def forget_history(session: Session, request: TokenizedGenerateReqInput) -> None:
    """Clear the session where `request` replaces all of it, so that SGLang finds it empty."""
    asked = request.session_params
    if session.streaming or not asked.replace or asked.rid is not None:
        return
    for rid, node in list(session.req_nodes.items()):
        # A node clears those below it too.
        if session.req_nodes.get(rid) is node:
            node.clear(session.req_nodes)


def install() -> None:
    """Let the scheduler's sessions do so, in this process; idempotent."""
    from sglang.srt.session.session_controller import Session

    stock = Session.create_req
    if stock.__module__ == __name__:
        return

    def create_req(session: Session, req: TokenizedGenerateReqInput, *args: Any, **kw: Any) -> Any:
        forget_history(session, req)
        return stock(session, req, *args, **kw)

    Session.create_req = create_req
