"""What two tasks have in common when they ask the same.

Alone: pytest tests/benchmarks/test_task.py
"""

from fastmtp_benchmarks.task import Conversation, Task


def test_the_digest_follows_the_questions():
    task = Task("t", (Conversation("a", ("x",)),))
    assert task.digest == Task("other", task.conversations).digest
    assert task.digest != Task("t", (Conversation("a", ("y",)),)).digest
    assert task.digest != Task("t", (Conversation("a", ("x",), output_length=3),)).digest
