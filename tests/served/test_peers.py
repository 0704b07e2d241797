"""`peers` with real servers beside transformers, on a tiny model.

Run alone: pytest tests/served/test_peers.py (starts two servers of its own)
"""

import json
import subprocess
import sys

import pytest
import tiny_models as models


@pytest.mark.slow
def test_all_systems_but_llama_cpp(tmp_path):
    target = models.target(tmp_path / "target", "llama", output_scale=0.01)
    models.agreeing_head(target, tmp_path / "head", noise=0.1)
    systems = ("transformers", "transformers-prompt-lookup", "sglang", "fastmtp")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "fastmtp_benchmarks.peers", "--json"),
            *("--model", target, "--draft", tmp_path / "head", "--num-steps", "2"),
            *("--systems", ",".join(systems), "--batch-sizes", "1,3", "--rounds", "2"),
            *("--tokens", "12", "--dtype", "float32", "--threads", "1"),
            *("--output", tmp_path / "peers.json"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (rows,) = json.loads(result.stdout.splitlines()[-1]).values()
    wanted = [(1, name) for name in systems]
    wanted += [(3, name) for name in systems if name != "transformers-prompt-lookup"]
    assert [(row["batch"], row["system"]) for row in rows] == wanted
    written = json.loads((tmp_path / "peers.json").read_text())
    # 8 prompts at batch 1, 6 at batch 3, in two rounds.
    assert written["identical_sglang_fastmtp"] == [28, 28]
    # Float32 sums in another order rarely change an answer of this model.
    for row in written["rows"]:
        same, answers = row["identical_to_transformers"]
        assert same > answers / 2, row
        drafted = row["acceptance_length"] is not None
        assert drafted == (row["system"] == "fastmtp")
    assert written["rows"][3]["acceptance_length"] > 1.3
    assert (tmp_path / "peers.png").stat().st_size > 5000
