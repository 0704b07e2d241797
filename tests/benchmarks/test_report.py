"""From finished cells to rows, tables, plots; what is kept, refused, and compared.

Alone: pytest tests/benchmarks/test_report.py
"""

import json
from xml.etree import ElementTree

import pytest

from fastmtp_benchmarks import plots
from fastmtp_benchmarks.compare import compare
from fastmtp_benchmarks.records import SpecCounters
from fastmtp_benchmarks.report import make_rows, means, write_report
from fastmtp_benchmarks.store import Cell, CellInfo, Store, cell_name
from fastmtp_sglang.errors import FastMTPError

TASKS = ("mt_bench", "qa", "rag")


@pytest.fixture
def cell(record):
    """A cell of six conversations; `speed` is tokens per second after the first token."""

    def make(configuration="baseline", task="qa", concurrency=1, speed=10.0, **fields):
        counted = {} if configuration == "baseline" else {"counters": (10, 14, [2, 4, 2, 2])}
        steps = None if configuration == "baseline" else fields.pop("num_steps", 3)
        records = [
            record(
                f"{task}/{i}",
                [(1.0, 1), (1.0 + 20 / speed, 21)],
                configuration=configuration,
                task=task,
                token_ids=list(range(21)),
                **counted,
            )
            for i in range(6)
        ]
        info = CellInfo(
            configuration=configuration,
            task=task,
            concurrency=concurrency,
            request_rate=None,
            settings={"sampling": {"temperature": 0.0}, "api": "auto"},
            server={"speculative_num_steps": steps},
            environment={"cpu": "cpu", "date": "2026-01-01", "versions": {}, "commit": "c"},
            wall_seconds=6 * (1.0 + 20 / speed),
            conversations_left_out=0,
            cache_flushed=True,
        )
        return Cell(info.model_copy(update=fields), records)

    return make


def filled(directory, cells):
    store = Store(directory)
    for one in cells:
        info = one.info
        store.save(cell_name(info.configuration, info.task, f"c{info.concurrency}"), one)
    return directory


def test_a_row(cell):
    # 21 tokens: 3 s against 2 s; decoding 20 tokens: 2 s against 1 s.
    base, row = make_rows([cell(), cell("fastmtp", speed=20)], "baseline")
    assert (row.tokens_per_second, row.request_tokens_per_second) == (10.5, 10.5)
    assert (row.decode_tokens_per_second, row.speedup, row.decode_speedup) == (20.0, 1.5, 2.0)
    assert row.speedup_interval == (1.5, 1.5)
    assert (row.acceptance_length, row.acceptance_per_step) == (2.4, [0.8, 0.4, 0.2])
    assert (row.identical, row.pairs, row.requests, row.failed) == (6, 6, 6, 0)
    assert (row.output_tokens, row.prompt_tokens, row.in_flight) == (126, 18, 1.0)
    assert row.first_token_milliseconds["p50"] == 1000
    assert row.inter_token_milliseconds["p99"] == pytest.approx(50)
    assert (base.speedup, base.acceptance_length, base.counters_missing) == (1.0, None, 0)


def test_differences_and_failures_are_shown(cell, tmp_path):
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


def test_sampled_answers_need_not_agree(cell):
    settings = {"sampling": {"temperature": 0.7}}
    rows = make_rows([cell(settings=settings), cell("fastmtp", settings=settings)], "baseline")
    assert rows[1].identical is None
    assert rows[1].speedup == 1.0


def test_a_server_that_counts_in_total_only(cell):
    counters = SpecCounters(verifications=10, accepted_drafts=5, histogram=[5, 5])
    base = cell()
    other = Cell(cell("vllm", server_counters=counters).info, base.records)
    (row,) = make_rows([other], None)
    assert (row.acceptance_length, row.counters_missing) == (1.5, 0)
    assert row.acceptance_length_interval is None
    assert row.speedup is None


def test_the_table_of_the_paper(cell, tmp_path):
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


@pytest.mark.heavy
def test_plots(cell, tmp_path):
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


def test_plots_without_their_data_are_not_drawn(cell, tmp_path):
    write_report(filled(tmp_path, [cell()]), "c")
    assert not (tmp_path / "plots").exists()


def test_a_cell_without_its_marker_is_not_finished(cell, tmp_path):
    filled(tmp_path, [cell(), cell("fastmtp")])
    (tmp_path / "requests" / "fastmtp--qa--c1.json").unlink()
    assert [one.info.configuration for one in Store(tmp_path).cells()] == ["baseline"]
    assert Store(tmp_path).info("fastmtp--qa--c1") is None
    (tmp_path / "requests" / "baseline--qa--c1.json").write_text("{}")
    with pytest.raises(FastMTPError, match=r"baseline--qa--c1\.json: not written by this version"):
        Store(tmp_path).cells()


def test_records_come_back_as_they_were(cell, tmp_path):
    saved = cell("fastmtp")
    filled(tmp_path, [saved])
    assert Store(tmp_path).cells() == [saved]


def test_compare_two_directories(cell, tmp_path):
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
def test_what_cannot_be_compared(cell, tmp_path, monkeypatch, a, b, message):
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / "a", [cell(), cell("fastmtp")])
    filled(tmp_path / "b", [cell("other", "rag")])
    with pytest.raises(FastMTPError, match=message):
        compare(a, b)
