"""What the kernel benchmark measures: variants that give the same tokens, and the bytes they need.

Numbers are random from the benchmark's own seed. Alone: pytest tests/benchmarks/test_kernels.py
"""

import argparse
import json

import pytest
import torch

from fastmtp_benchmarks import environment, kernels

SMALL = {"vocab_size": 96, "width": 16, "list_size": 32, "languages": 3, "max_copies": 2}


def bench(**changes) -> kernels.Bench:
    torch.manual_seed(0)
    return kernels.Bench(argparse.Namespace(**{"device": "cpu", "dtype": "fp32"} | SMALL | changes))


def test_lists_share_a_quarter():
    one, other, third = (set(ids.tolist()) for ids in bench().lists)
    assert [len(one), len(other), len(third)] == [32] * 3
    assert len(one & other) == len(one & other & third) == 8


def test_lists_that_do_not_fit():
    with pytest.raises(SystemExit, match="4 lists of 32 do not fit into 96 ids: lower --languages"):
        bench(languages=4)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 7])
@torch.no_grad()
def test_variants_give_the_same_tokens(batch, mixed):
    """Else their times would say nothing about each other."""
    made = bench()
    made.mixed = mixed
    hidden = torch.randn(batch, made.width)
    language = torch.arange(batch) % (3 if mixed else 1)
    for copy, head in enumerate(made.heads):
        scores = hidden.double() @ head.double().T
        outside = torch.ones(batch, made.vocab_size, dtype=torch.bool)
        for row in range(batch):
            outside[row, made.lists[language[row]]] = False
        everything, listed = scores.argmax(1), scores.masked_fill(outside, -torch.inf).argmax(1)
        for name, per_head in made.variants(compiled=False).items():
            expected = everything if "full" in name else listed
            assert torch.equal(per_head[copy](hidden, language), expected), name


def test_rows_that_are_read():
    made = bench()
    names = list(made.variants(compiled=False))
    assert [made.rows_read(name, 2) for name in names] == [96, 32, 32, 32, 96]
    made.mixed = True
    # Ours reads what two lists share once; the others run once a language.
    assert [made.rows_read(name, 2) for name in names] == [96, 64, 64, 56, 96]
    assert [made.rows_read(name, 9) for name in names] == [96, 96, 96, 80, 96]


def test_times_are_medians_over_all_copies():
    calls = []
    runs = [lambda i=i: calls.append(i) for i in range(3)]
    assert 0 <= kernels.measure(runs, torch.device("cpu"), 5) < 1e-3
    assert calls == [0, 1, 2, 0, 1, 2, 0, 1]  # each once before


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(environment, "environment", dict)
    flags = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    flags = [flag.replace("_", "-") for flag in flags]
    output = tmp_path / "k.json"
    monkeypatch.setattr(
        "sys.argv",
        ["kernels", "--device", "cpu", "--dtype", "bf16", *flags, "--batch-sizes", "1", "3",
         "--repeats", "2", "--output", str(output)],
    )  # fmt: skip
    kernels.main()
    saved = json.loads(output.read_text())
    assert saved["shape"] == {"vocab_size": 96, "width": 16, "dtype": "bf16"}
    # A batch of one row is not mixed.
    measured = [(row["batch"], row["languages"]) for row in saved["rows"]]
    assert measured == [(1, 1)] * 5 + [(3, 1)] * 5 + [(3, 3)] * 5
    assert "of copy" in capsys.readouterr().out
