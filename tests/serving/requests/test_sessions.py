"""The history of a session is replaced, whatever its shape.

Alone: pytest tests/serving/requests/test_sessions.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.session.session_controller import Session, SessionReqNode

from fastmtp_sglang.serving.requests.sessions import forget_history


@pytest.fixture
def session() -> Session:
    """Two first requests, one of them with two that follow."""
    made = Session(1000)
    for rid, parent in (("a", None), ("b", "a"), ("c", "a"), ("d", None)):
        request = SimpleNamespace(rid=rid, finished_reason="stop")
        made.req_nodes[rid] = SessionReqNode(request, made.req_nodes.get(parent))
    return made


def asked(**fields):
    return SimpleNamespace(
        session_params=SimpleNamespace(**{"replace": True, "rid": None, **fields})
    )


def test_all_of_it_goes(session):
    forget_history(session, asked())
    assert session.req_nodes == {}


@pytest.mark.parametrize("fields", [{"replace": False}, {"rid": "a"}])
def test_the_rest_is_sglangs(session, fields):
    forget_history(session, asked(**fields))
    assert set(session.req_nodes) == set("abcd")
    session.streaming = True
    forget_history(session, asked())
    assert set(session.req_nodes) == set("abcd")
