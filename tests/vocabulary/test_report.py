"""The report of a build: figures against plain sums, and a plot drawn from nothing else.

Alone: pytest tests/vocabulary/test_report.py
"""

import builtins
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.counting import TokenCounts
from fastmtp_sglang.vocabulary.draft_cost import DraftCost
from fastmtp_sglang.vocabulary.ranking import RankedList
from fastmtp_sglang.vocabulary.report import build_report, plot_report, require_matplotlib

SEED = 20250918
VOCABULARY = 1000
SIZES = (100, 400, 900)
COST = DraftCost(target=10**6, layer=10**5, row=128, vocab_size=VOCABULARY)


def ranked(*, heldout: bool = True, required: int = 20, seed: int = SEED) -> RankedList:
    """900 of 1,000 ids; what is held out comes from the same skewed distribution, but not all."""
    source = np.random.default_rng(seed)
    share = 1 / np.arange(1, VOCABULARY + 1)
    counts = source.poisson(500 * share)
    held = source.poisson(50 * share) if heldout else np.zeros(VOCABULARY, dtype=np.int64)
    held[-100:] = 3 if heldout else 0  # tokens that no list holds
    ids = np.argsort(-counts[:900], kind="stable")
    unseen = np.argsort(-(counts - np.minimum(counts, held))[:900], kind="stable")
    # Half of what is held out occurred before.
    return RankedList(ids, unseen, counts, held, held // 2, required, documents=7)


def report(ranked: dict[str, RankedList], cost: DraftCost | None = COST, **changes) -> dict:
    counts = TokenCounts(VOCABULARY, undecided=5)
    for name, chosen in ranked.items():
        counts.counted[name] = chosen.counts
        if chosen.heldout.any():
            counts.heldout[name] = chosen.heldout
    given = {
        "target": SimpleNamespace(path=Path("/m"), fingerprint="sha256:0", vocab_size=VOCABULARY),
        "counts": counts,
        "required": {"bytes": {0, 1, 2}, "stop": {2, 3}},
        "ranked": ranked,
        "sizes": SIZES,
        "cost": cost,
        "recommended": {"en": 400},
        "written": {"en": 100},
        "sources": ("en=a.jsonl",),
        "own_tokens": 0,
    } | changes
    return build_report(**given)


def test_what_was_counted_and_decided():
    english, chinese = ranked(), ranked(seed=SEED + 1)
    found = report({"en": english, "zh": chinese})
    assert json.loads(json.dumps(found)) == found
    assert (found["model"], found["sources"]) == ("/m", ["en=a.jsonl"])
    assert found["tokens"] == {
        "counted": {"en": english.counts.sum(), "zh": chinese.counts.sum()},
        "held_out": {"en": english.heldout.sum(), "zh": chinese.heldout.sum()},
        "undecided": 5,
    }
    # An id of two classes is one id.
    assert found["always_included"] == {"bytes": 3, "stop": 2, "together": 4}
    assert found["languages"]["en"]["documents"] == 7
    assert found["languages"]["en"]["distinct_ids"] == (english.counts > 0).sum()
    chosen = {
        name: (language["recommended"], language["written"])
        for name, language in found["languages"].items()
    }
    assert chosen == {"en": (400, 100), "zh": (None, None)}


def test_coverage_is_the_share_of_held_out_tokens():
    """Of a list ranked without them, in plain sums; the curve and the sizes tell the same."""
    chosen = ranked()
    total = int(chosen.heldout.sum())

    def coverage(size: int) -> float:
        return sum(int(chosen.heldout[index]) for index in chosen.unseen[:size]) / total

    english = report({"en": chosen})["languages"]["en"]
    assert [row["size"] for row in english["sizes"]] == list(SIZES)
    for row in english["sizes"]:
        assert row["coverage"] == pytest.approx(coverage(row["size"]), abs=1e-12)
        assert row["head_bytes"] == 128 * row["size"]
        assert row["predicted_speedup"] == COST.speedup(row["size"], row["coverage"])
    sizes = [size for size, _ in english["curve"]]
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (20, 900)
    assert 30 < len(sizes) <= 64
    for size, share in english["curve"]:
        assert share == pytest.approx(coverage(size), abs=1e-12)
    assert english["curve"][-1][1] < 1  # some tokens are in no list


def test_own_tokens_cover_what_came_before():
    chosen = ranked()
    (row, *_) = report({"en": chosen}, own_tokens=64)["languages"]["en"]["sizes"]
    listed, left = chosen.unseen[: row["size"]], chosen.unseen[row["size"] :]
    covered = chosen.heldout[listed].sum() + chosen.repeats[left].sum()
    assert row["own_coverage"] == pytest.approx(covered / chosen.heldout.sum(), abs=1e-12)
    assert row["head_bytes"] == 128 * (row["size"] + 64)


def test_a_curve_may_begin_without_anything_always_included():
    curve = report({"en": ranked(required=0)})["languages"]["en"]["curve"]
    assert curve[0][0] == 1


def test_where_nothing_was_held_out_nothing_is_claimed():
    english = report({"en": ranked(heldout=False)})["languages"]["en"]
    assert english["curve"] == []
    for row in english["sizes"]:
        assert (row["coverage"], row["predicted_speedup"]) == (None, None)
        assert row["head_bytes"] == 128 * row["size"]


def test_without_the_targets_shapes_there_are_no_bytes():
    found = report({"en": ranked()}, cost=None)
    assert found["bytes"] is None
    assert found["languages"]["en"]["sizes"][0]["head_bytes"] is None
    assert found["languages"]["en"]["sizes"][0]["coverage"] is not None
    assert report({"en": ranked()})["bytes"] == {
        "target": 10**6,
        "mtp_layer": 10**5,
        "full_head": 128 * VOCABULARY,
        "assumed_acceptance": list(COST.acceptance),
    }


def test_the_plot_is_drawn_from_the_report_alone(tmp_path: Path):
    pytest.importorskip("matplotlib")
    read = json.loads(json.dumps(report({"en": ranked(), "zh": ranked(heldout=False)})))
    plot_report(read, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    nothing = json.loads(json.dumps(report({"en": ranked(heldout=False)})))
    plot_report(nothing, tmp_path / "plot.png")  # over the one before, and with no line at all
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    real_import = builtins.__import__

    def without_matplotlib(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(FastMTPError, match=r"--plot: needs matplotlib.*fastmtp-sglang\[bench\]"):
        require_matplotlib()
