"""The table and the plot over rows made by hand, and the limit of memory.

Alone: pytest tests/benchmarks/test_peers_report.py
"""

import pytest
import tiny_models as models
from rich.console import Console

from fastmtp_benchmarks import peers_report
from fastmtp_benchmarks.peers_report import memory_limit, plot, table
from fastmtp_benchmarks.peers_rounds import PeerRow

ROWS = [
    PeerRow("transformers", "float32", 1, 20.0, 1.0, (1.0, 1.0), None, (8, 8)),
    PeerRow("llama.cpp", "Q8_0", 1, 90.0, 4.5, (4.4, 4.625), None, (3, 8)),
    PeerRow("transformers", "float32", 8, 120.0, 1.0, (1.0, 1.0), None, (8, 8)),
    PeerRow("fastmtp", "float32", 8, 180.0, None, None, 1.345, None),
]


def test_the_table_fits_a_terminal():
    console = Console(width=80, record=True)
    console.print(table(ROWS, "title"))
    lines = console.export_text().splitlines()
    (told,) = (line for line in lines if "llama.cpp" in line)
    assert told.split() == [
        *("│", "1", "│", "llama.cpp", "│", "Q8_0", "│", "90.0", "│", "4.50x", "│"),
        *("4.40-4.62", "│", "-", "│", "3/8", "│"),
    ]
    (told,) = (line for line in lines if "fastmtp" in line)
    assert told.split("│")[5:-1] == ["     - ", "         - ", "   1.34 ", "    - "]


def test_a_panel_per_batch_and_a_bar_per_system():
    figure = plot(ROWS, "title")
    one, eight = figure.axes
    assert [bar.get_width() for bar in one.patches] == [20.0, 90.0]
    assert [bar.get_width() for bar in eight.patches] == [120.0, 180.0]
    names = ["transformers float32", "llama.cpp Q8_0", "fastmtp float32"]
    assert [label.get_text() for label in one.get_yticklabels()] == names
    # A system has the same place and colour in both.
    assert one.patches[0].get_facecolor() == eight.patches[0].get_facecolor()
    assert eight.patches[1].get_y() > one.patches[1].get_y()
    assert {text.get_text() for text in one.texts} == {" 1.00x", " 4.50x"}


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_the_limit_of_memory(tmp_path, monkeypatch, dtype, width):
    monkeypatch.setattr(peers_report, "_COPIED_BYTES", 4096)
    models.target(tmp_path, "llama")
    limit = memory_limit(tmp_path, dtype)
    attention, mlp = 64 * 64 * 2 + 64 * 32 * 2, 64 * 128 * 3
    layers = 2 * (attention + mlp + 2 * 64)
    # The embedding is another matrix, of which a step reads a row.
    assert limit["weight_bytes"] == width * (layers + 64 + 49152 * 64)
    speed = limit["copy_bytes_per_second"] / limit["weight_bytes"]
    assert limit["tokens_per_second"] == pytest.approx(speed, abs=0.01)
