"""From finished cells to rows, tables, plots; what is kept, refused, and compared.

Alone: pytest tests/benchmarks/test_report.py
"""

import json

from fastmtp_benchmarks.report import make_rows, means, write_report
from fastmtp_benchmarks.store import Cell

TASKS = ("mt_bench", "qa", "rag")


def test_differences_and_failures_are_shown(cell, tmp_path, filled):
    other = cell("fastmtp", speed=5)
    other.records[0].token_ids[7] = 999
    changed = {"error": "HTTP 500", "output_tokens": None, "seconds": None, "speculation": None}
    other.records[1] = other.records[1].model_copy(update=changed)
    other.records[2] = other.records[2].model_copy(update={"speculation": None, "attempts": 2})
    flagged = Cell(
        other.info.model_copy(update={"cache_flushed": False, "conversations_left_out": 3}),
        other.records,
    )
    write_report(filled(tmp_path, [cell(), flagged]), "the command", plots=False)
    _, row = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert (row["identical"], row["pairs"], row["failed"]) == (4, 5, 1)
    assert row["differences"] == [{"prompt_id": "qa/0", "turn": 0, "position": 7}]
    assert row["errors"] == {"HTTP 500": 1}
    assert (row["retried"], row["counters_missing"]) == (1, 1)
    assert row["decode_tokens_per_second"] == 5.0  # the failed one is not in it
    text = (tmp_path / "report.md").read_text()
    for line in (
        "1 failed: HTTP 500",
        "3 conversations left out by the time limit",
        "1 answers needed more than one attempt",
        "1 answers without speculation counters",
        "slower than the baseline, 0.60x",
        "the prefix cache could not be flushed",
        "qa/0, turn 0, differs from position 7",
        "4 of 5",
        "(1 failed)",
    ):
        assert line in text


def test_the_table_of_the_paper(cell, tmp_path, filled):
    cells = [
        cell(name, task, speed=speed)
        for name, speed in (("baseline", 10), ("fastmtp", 20))
        for task in TASKS
    ]
    rows = write_report(
        filled(tmp_path, cells),
        "fastmtp bench",
        configurations=["baseline"],
        tasks=["rag", "qa"],
        plots=False,
    )
    text = (tmp_path / "report.md").read_text()
    assert "| configuration (speedup / tau) | rag | qa | mt_bench | mean |" in text
    assert "| fastmtp | 1.50x / 2.40 | 1.50x / 2.40 | 1.50x / 2.40 | 1.50x / 2.40 |" in text
    assert "| baseline | 1.00x / - |" in text
    assert "Not as it should be" not in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["command"] == "fastmtp bench"
    assert summary["environment"]["cpu"] == "cpu"
    assert list(summary["configurations"]) == ["baseline", "fastmtp"]
    assert {"task", "configuration", "concurrency", "acceptance_length", "acceptance_per_step",
            "tokens_per_second", "speedup", "identical"} <= set(summary["rows"][0])  # fmt: skip
    assert summary["means"] == means(rows)
    assert [m["speedup"] for m in summary["means"]] == [1.0, 1.5]


def test_a_mean_needs_every_task(cell):
    rows = make_rows([cell(), cell("fastmtp"), cell("fastmtp", "rag")], "baseline")
    assert [m["speedup"] for m in means(rows)] == [1.0, None]
