"""What a report draws, from rows of a test's own making.

Alone: pytest tests/benchmarks/test_plots.py
"""

import sys
from xml.etree import ElementTree

import pytest

from fastmtp_benchmarks import plots
from fastmtp_benchmarks.report import make_rows, write_report
from fastmtp_sglang.errors import FastMTPError

TASKS = ("mt_bench", "qa", "rag")


@pytest.mark.heavy
def test_plots(cell, tmp_path, filled):
    cells = [cell(task=task, concurrency=c) for task in TASKS for c in (1, 8)]
    cells += [
        cell(f"k{k}-{size}", task, speed=20 + k, num_steps=k, vocabulary_size=size)
        for k in (1, 3)
        for size in (None, 8192, 16384)
        for task in TASKS
    ]
    write_report(filled(tmp_path, cells), "c")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    # At concurrency 8 there is only a baseline.
    drawn = ("speedup", "acceptance-per-step", "num-steps", "vocabulary-size")
    expected = ["concurrency", *(f"{name}-concurrency-1" for name in drawn)]
    assert names == {f"{name}.{kind}" for name in expected for kind in ("png", "svg")}
    for path in (tmp_path / "plots").iterdir():
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
            assert path.stat().st_size > 5000
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    radar = plots.radar(make_rows([c for c in cells if c.info.concurrency == 1], "baseline"))
    assert [label.get_text() for label in radar.axes[0].get_xticklabels()] == list(TASKS)


def test_plots_without_their_data_are_not_drawn(cell, tmp_path, filled):
    write_report(filled(tmp_path, [cell()]), "c")
    assert not (tmp_path / "plots").exists()


def drawn(figure, axes: int = 0) -> dict[str, list[tuple[float, float]]]:
    lines = figure.axes[axes].get_lines()
    named = [line for line in lines if not line.get_label().startswith("_")]
    return {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in named
    }


def test_a_point_is_the_mean_of_all_tasks_or_left_out(cell):
    """At K = 2 one task has no baseline: a mean of the other would not be comparable."""
    baselines = [cell(task=task) for task in TASKS[1:]]
    # A request of the baseline takes 3 s; at speed 40 the 20 tokens take half a second.
    speeds = {1: 10.0, 2: 20.0, 4: 40.0}
    drafted = [
        cell(f"k{k}", task, speed=speed, num_steps=k)
        for k, speed in speeds.items()
        for task in (TASKS if k == 2 else TASKS[1:])
    ]
    figure = plots.over_num_steps(make_rows([*baselines, *drafted], "baseline"))
    assert drawn(figure)["speedup, all tokens"] == [(1, 1.0), (4, 2.0)]
    assert drawn(figure, axes=1)["acceptance, all tokens"] == [(1, 2.4), (2, 2.4), (4, 2.4)]


def test_trees_are_not_drawn_over_k(cell):
    """K alone does not say what a tree drafts."""
    tree = {"server": {"speculative_num_steps": 5, "speculative_eagle_topk": 4}}
    rows = make_rows([cell(), cell("k3"), cell("tree", **tree)], "baseline")
    assert plots.over_num_steps(rows) is None


def test_acceptance_of_fewer_steps_counts_zero_for_the_others(cell):
    rows = make_rows([cell("k3"), cell("k3", "rag")], None)
    rows[1].acceptance_per_step = [0.4]
    heights = [bar.get_height() for bar in plots.acceptance_per_step(rows).axes[0].patches]
    assert heights == pytest.approx([0.6, 0.2, 0.1])


def test_throughput_over_the_load(cell):
    cells = [cell(concurrency=c, wall_seconds=18.0 / c) for c in (1, 4)]
    figure = plots.over_concurrency(make_rows(cells, "baseline"))
    assert drawn(figure) == {"baseline": [(1, 7.0), (4, 28.0)]}


def test_plots_need_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FastMTPError, match=r"pip install 'fastmtp-sglang\[bench\]'.* is kept"):
        plots.draw_all([], tmp_path)
