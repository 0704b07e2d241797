"""Names of the files of a measurement, and what of them counts as finished.

Alone: pytest tests/benchmarks/test_store.py
"""

import itertools

import pytest

from fastmtp_benchmarks.load import Level
from fastmtp_benchmarks.store import Store, cell_name
from fastmtp_sglang.errors import FastMTPError

LEVEL = Level(concurrency=1)


def test_plain_names_are_readable():
    assert cell_name("fastmtp-16k", "mt-bench", LEVEL) == "fastmtp-16k--mt-bench--c1"


@pytest.mark.parametrize(
    "tasks",
    [
        ("高中物理", "计算机网络", "-", ""),
        ("mt bench", "mt-bench", "mt/bench", "mt--bench", "mt-bench-"),
        ("x" * 90, "x" * 91),
    ],
)
def test_no_two_tasks_share_files(tasks):
    names = [cell_name("fastmtp", task, LEVEL) for task in tasks]
    assert len(set(names)) == len(tasks)
    assert all(name.isascii() and "/" not in name and len(name) < 200 for name in names)


def test_where_one_part_ends_and_the_next_begins():
    cells = itertools.product(("a", "a--b", "a--b--c"), ("c", "b--c", "b"))
    assert len({cell_name(*cell, LEVEL) for cell in cells}) == 9


def test_a_cell_without_its_marker_is_not_finished(cell, tmp_path, filled):
    filled(tmp_path, [cell(), cell("fastmtp")])
    (tmp_path / "requests" / "fastmtp--qa--c1.json").unlink()
    assert [one.info.configuration for one in Store(tmp_path).cells()] == ["baseline"]
    assert Store(tmp_path).info("fastmtp--qa--c1") is None
    (tmp_path / "requests" / "baseline--qa--c1.json").write_text("{}")
    with pytest.raises(FastMTPError, match=r"baseline--qa--c1\.json: not written by this version"):
        Store(tmp_path).cells()


def test_records_come_back_as_they_were(cell, tmp_path, filled):
    saved = cell("fastmtp")
    filled(tmp_path, [saved])
    assert Store(tmp_path).cells() == [saved]
