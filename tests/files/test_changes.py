"""What differs between two runs, in words.

Alone: pytest tests/files/test_changes.py
"""

from fastmtp_sglang.files.changes import differences


def test_differences():
    before = {"a": 1, "gone": 2, "same": [1, 2], "list": [1, 2, 3]}
    now = {"a": 2, "same": [1, 2], "list": [1, 4, 3], "new": "x"}
    assert differences(before, now, {"a": "--a"}) == [
        "--a was 1 and is 2",
        "gone was 2 and is None",
        "list was [2] and is [4]",
        "new was None and is 'x'",
    ]
    assert differences(now, now) == []


def test_long_lists_are_short_and_order_counts():
    many = [f"file {i}" for i in range(400)]
    assert differences({"l": many}, {"l": [*many[1:], many[0]]}) == [
        "l was ['file 0', 'file 1', 'file 2', '397 more'] and is "
        "['file 1', 'file 2', 'file 3', '397 more']"
    ]
    assert differences({"l": many}, {"l": many[:-1]}) == [
        "l was ['file 399'] and is ['file 0', 'file 1', 'file 2', '396 more']"
    ]
