"""docs/limits.md is made of tables that refuse: all of them, and legible.

That the file is what the tables say, and that its tests exist, is shown by
tests/repository/test_docs.py. Alone: pytest tests/doctor/test_support.py
"""

import re

import pytest

from fastmtp_sglang.contract.limits import LIMITS, NOT_ADAPTIVE, ON_A_CPU, Limit, flag_of
from fastmtp_sglang.doctor import support
from fastmtp_sglang.doctor.parity import PARITY
from fastmtp_sglang.serving.requests.guards import GUARDED

PAGE = support.page()


def tables() -> dict[str, list[list[str]]]:
    """The cells of each table, by the heading above it."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in PAGE.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append(line[2:-2].split(" | "))
    return found


def test_tables_are_rectangular():
    """A bar in a cell would begin another one."""
    found = tables()
    assert len(found) == 4
    # Two tables: of all servers, then of the CPU platform.
    start_up = found.pop("Refused at start-up")
    cpu = next(i for i, row in enumerate(start_up) if row[:2] == ["flag", "reason"])
    for rows in (*found.values(), start_up[:cpu], start_up[cpu:]):
        assert {len(row) for row in rows} == {len(rows[0])}
        assert all(cell.strip() for row in rows for cell in row[:-1])


def test_all_that_is_refused_is_said():
    flags = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert {limit.flag for limit in (*LIMITS, *ON_A_CPU)} <= flags
    assert {flag_of(field) for field, _ in NOT_ADAPTIVE} <= flags


def test_all_that_works_or_is_answered_is_said():
    for what, *_ in (*support.WORKS, *GUARDED, *((feature.name,) for feature in PARITY)):
        assert f"| {what} |" in PAGE, what
    assert all(f"- {what}\n" in PAGE for what in support.UNPROVEN)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.field)
def test_a_reader_sees_which_values_are_refused(limit):
    """An empty cell would say none; predicates are asked about numbers that stand for them all."""
    assert support._when(limit)


def test_values_that_are_refused():
    above_one = Limit("pp_size", "", "", "", lambda value: value > 1)
    assert support._when(above_one) == "`2`, `8`"
    assert support._when(Limit("x", "", "", "")) == "any other value than the default"
