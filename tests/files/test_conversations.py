"""One reader of conversations for all commands: spellings, parts, tools, and what is refused.

Alone: pytest tests/files/test_conversations.py
"""

import pytest

from fastmtp_sglang.files.conversations import BadRowError, parse_conversation, read_chat

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": SAID},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in SAID]},
        {"messages": [{**m, "tool_calls": None, "name": None} for m in SAID], "tools": []},
    ],
    ids=["messages", "ShareGPT", "parts", "nulls"],
)
def test_spellings(row):
    chat = read_chat(row)
    assert chat.messages == SAID
    assert chat.tools is None
    assert parse_conversation(row).turns == ["a"]


def test_parts_are_joined_as_sglang_joins_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_chat({"messages": [{"role": "user", "content": parts}]}).messages == [
        {"role": "user", "content": "a b"}
    ]


def test_system_of_a_row_is_its_first_message():
    row = {"system": "s", "turns": ["a", "b"]}
    assert [message["role"] for message in read_chat(row).messages] == ["system", "user", "user"]
    assert parse_conversation(row).system == "s"
    own = {"system": "s", "messages": [{"role": "system", "content": "own"}, *SAID]}
    assert parse_conversation(own).system == "own"


def test_tool_calls_hold_objects():
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "1", "content": "x"}
    chat = read_chat({"messages": [SAID[0], asked, result], "tools": [{"type": "function"}]})
    assert chat.messages[1]["content"] == ""
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert chat.messages[2] == result
    assert chat.tools == [{"type": "function"}]
    assert CALL["function"]["arguments"] == '{"a": 1}'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no text or message"),
        ({"messages": None}, "has the fields messages and not"),
        ({"messages": "x", "turns": 3}, None),
        ({"messages": {"role": "user"}}, "no text"),
        ({"messages": [SAID[0], "text"]}, "no text"),
        ({"messages": [{"content": "x"}]}, "the role None"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "the role"),
        ({"messages": [{"role": "user", "content": None}]}, "content is no text"),
        ({"messages": [{"role": "user", "content": []}]}, "content is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content is no text"),
        ({"messages": [{"role": "user", "content": 5}]}, "content is no text"),
        ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "tool_calls that are no"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tool_calls that are no"),
        ({"messages": SAID, "tools": {"a": 1}}, "tools that are no list"),
        (3, "is a int"),
        (None, "is a NoneType"),
    ],
)
def test_rows_that_are_no_conversation(row, reason):
    if reason is None:
        assert read_chat(row).messages == [{"role": "user", "content": "x"}]
        return
    with pytest.raises(BadRowError, match=reason):
        read_chat(row)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SAID[0], {"role": "assistant", "tool_calls": [CALL]}]},
        {"messages": [SAID[0], {"role": "tool", "content": "x"}]},
        {"messages": SAID, "tools": [{"type": "function"}]},
    ],
)
def test_tools_cannot_be_used_again_where_a_model_answers(row):
    with pytest.raises(BadRowError, match=r"tools.*cannot be had again"):
        parse_conversation(row)
