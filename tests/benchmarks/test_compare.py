"""Two finished benchmarks beside each other, and what a reader must know of them.

Alone: pytest tests/benchmarks/test_compare.py
"""

import pytest

from fastmtp_benchmarks.compare import compare
from fastmtp_sglang.errors import FastMTPError


def test_compare_two_directories(cell, tmp_path, filled):
    a = filled(tmp_path / "a", [cell(), cell("fastmtp", speed=20), cell("old")])
    faster = cell("fastmtp", speed=40, environment={"cpu": "another", "date": ""})
    b = filled(tmp_path / "b", [faster])
    (row,), notes = compare(str(a), str(b))
    assert (row.configuration, row.decode_speedup) == ("fastmtp", 2.0)
    assert "cpu differs: 'cpu' and 'another'" in notes
    assert f"only in {a}: baseline, qa; old, qa" in notes
    (row,), _ = compare(f"{a}:baseline", f"{b}:fastmtp")
    assert row.decode_speedup == 4.0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("a", "nowhere", "nowhere: holds no finished measurement"),
        ("a:none", "a:baseline", "there is no none; there are baseline, fastmtp"),
        ("a", "b:other", "a: holds baseline, fastmtp: name the one to compare"),
        ("a", "b", "no configuration, task and load level in common"),
        ("a:baseline", "b:other", "no task and load level in common"),
    ],
)
def test_what_cannot_be_compared(cell, tmp_path, monkeypatch, a, b, message, filled):
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / "a", [cell(), cell("fastmtp")])
    filled(tmp_path / "b", [cell("other", "rag")])
    with pytest.raises(FastMTPError, match=message):
        compare(a, b)


def test_a_directory_may_have_a_colon_in_its_name(cell, tmp_path, filled):
    directory = filled(tmp_path / "10:30", [cell("fastmtp")])
    (row,), notes = compare(str(directory), str(directory))
    assert (row.configuration, row.speedup, notes) == ("fastmtp", 1.0, [])


def test_settings_that_differ_are_told(cell, tmp_path, filled):
    settings = {"sampling": {"temperature": 0.7}, "api": "auto"}
    a = filled(tmp_path / "a", [cell()])
    b = filled(tmp_path / "b", [cell(settings=settings)])
    (row,), notes = compare(str(a), str(b))
    assert notes == ["sampling differs: {'temperature': 0.0} and {'temperature': 0.7}"]
    assert row.identical is None
