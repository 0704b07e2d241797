"""How acceptance grew, from logs written by hand.

Alone: pytest tests/benchmarks/test_growth.py
"""

import json

import pytest

from fastmtp_benchmarks.growth import joined, plot, points
from fastmtp_sglang.errors import FastMTPError


def write_run(folder, *, counted: bool):
    lines = []
    for epoch in (1.0, 2.0):
        seen = {"num_input_tokens_seen": int(600 * epoch)} if counted else {}
        lines.append({"epoch": epoch, "loss": 3.0, "tokens_per_second": 10.0 * epoch, **seen})
        figures = {"eval_acceptance_length": 1 + epoch / 4, "eval_accepted_1": epoch / 5}
        lines.append({"epoch": epoch, **figures, "eval_accepted_2": epoch / 10, **seen})
    for step in (9, 10):
        state = folder / f"checkpoint-{step}" / "trainer_state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"log_history": lines if step == 10 else []}))
    return folder


@pytest.mark.parametrize("counted", [True, False])
def test_points(tmp_path, counted):
    run = write_run(tmp_path / "run", counted=counted)
    first, second = points(run, None if counted else 600)
    assert (first.tokens, first.minutes, first.acceptance_length) == (600, 1.0, 1.25)
    assert (second.tokens, second.minutes, second.accepted) == (1200, 1.5, [0.4, 0.2])


def test_runs_follow_each_other_and_are_drawn(tmp_path):
    run = points(write_run(tmp_path / "run", counted=True))
    grown = joined([run, run])
    assert [point.tokens for point in grown] == [600, 1200, 1800, 2400]
    assert [point.minutes for point in grown] == [1.0, 1.5, 2.5, 3.0]
    lines = plot(grown).axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[20.0, 40.0] * 2, [10.0, 20.0] * 2]


def test_refusals(tmp_path):
    with pytest.raises(FastMTPError, match="no checkpoint"):
        points(tmp_path)
    with pytest.raises(FastMTPError, match="--tokens-per-epoch"):
        points(write_run(tmp_path / "run", counted=False))
