"""Prompts of many kinds: by weight, no repeats, no quotations, a longer run begins with a shorter.

Alone: pytest tests/distill/tasks/test_maker.py
"""

from itertools import islice
from pathlib import Path

import pydantic
import pytest
import rich
import typer

from fastmtp_sglang.distill.tasks.kinds import KINDS
from fastmtp_sglang.distill.tasks.maker import (
    QUOTED,
    REPEATED,
    TasksReport,
    make_tasks,
    parse_mix,
)
from fastmtp_sglang.distill.tasks.material import Material
from fastmtp_sglang.errors import FastMTPError

NUMBERS = {kind: float(kind == "numbers") for kind in KINDS}


@pytest.fixture(scope="module")
def material() -> Material:
    # All of the installed packages take seconds to list.
    return Material([Path(module.__file__).parent for module in (pydantic, rich, typer)])


def test_mix():
    assert parse_mix([]) == dict.fromkeys(KINDS, 1.0)
    assert parse_mix(["numbers=2.5", "define=0"])["numbers"] == 2.5
    for wrong in ("sums=1", "numbers", "numbers=-1", "numbers=nan", "numbers=inf", "=1"):
        with pytest.raises(FastMTPError, match="--kind"):
            parse_mix([wrong])
    with pytest.raises(FastMTPError, match="all weights are 0"):
        parse_mix([f"{kind}=0" for kind in KINDS])


@pytest.mark.heavy
def test_weights_repeats_and_quotations(material):
    report = TasksReport()
    mix = dict.fromkeys(KINDS, 0.0) | {"numbers": 3.0, "define": 1.0}
    rows = list(make_tasks(material, mix, 400, 0, [], report))
    assert len({tuple(turns) for _, turns in rows}) == 400
    # 100 expected, deviation 9.
    assert 65 < report.rows["define"] < 135
    assert report.rows["define"] + report.rows["numbers"] == 400
    assert report.left_out[REPEATED] > 0

    quoted = [turns[0] for _, turns in rows]
    again = TasksReport()
    fresh = list(make_tasks(material, mix, 50, 0, quoted, again))
    assert again.left_out[QUOTED] >= 50
    assert not {turns[0] for _, turns in fresh} & set(quoted)


def test_a_longer_run_begins_with_a_shorter_one(material):
    mix = parse_mix([])
    short = list(make_tasks(material, mix, 15, 3, [], TasksReport()))
    longer = list(islice(make_tasks(material, mix, 30, 3, [], TasksReport()), 15))
    other = list(make_tasks(material, mix, 15, 4, [], TasksReport()))
    assert short == longer != other


def test_used_up_material(material, monkeypatch):
    monkeypatch.setitem(KINDS, "numbers", lambda random, material: ["What is 1 + 1?"])
    with pytest.raises(FastMTPError, match="after 1 prompts the material gives nothing new"):
        list(make_tasks(material, NUMBERS, 2, 0, [], TasksReport()))
