"""configs/serve: SGLang's own parser takes each file, and means by it what we mean.

Parsing only: nothing is resolved, loaded or downloaded.
Alone: pytest tests/repository/test_configs.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastmtp_sglang.models.built_in import NO_PREFIX_CACHE, serve_flags

# One process that imports SGLang.
pytestmark = pytest.mark.heavy

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "serve").glob("*.yaml"))

# In a process of its own: the parser replaces the handlers of the root logger, pytest's included.
PARSE = """
import json, sys
from sglang.srt.server_args import prepare_server_args

fields = ("model_path", "speculative_algorithm", "speculative_draft_model_path",
          "speculative_num_steps", "dtype", "trust_remote_code", "disable_radix_cache",
          "max_total_tokens")
parsed = {}
for line in sys.stdin:
    name, argv = json.loads(line)
    args = prepare_server_args(argv)
    parsed[name] = {field: getattr(args, field) for field in fields}
print(json.dumps(parsed))
"""

# Model and head of the demo are where this machine caches them.
MODEL = ["--model-path", "m"]
COMMAND_LINES = {
    **{
        path.stem: ["--config", str(path), *(MODEL if path.stem == "smollm2-demo" else [])]
        for path in CONFIGS
    },
    "demo": [*MODEL, *serve_flags(), NO_PREFIX_CACHE],
    "overridden": ["--config", str(CONFIGS[0]), "--speculative-num-steps", "2"],
}


@pytest.fixture(scope="module")
def parsed() -> dict[str, dict]:
    lines = "\n".join(json.dumps(item) for item in COMMAND_LINES.items())
    result = subprocess.run(
        [sys.executable, "-c", PARSE], input=lines, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_four_files_are_there():
    names = ["mimo-7b-rl", "qwen3-8b", "smollm2-demo", "tencentbac-fastmtp"]
    assert [path.stem for path in CONFIGS] == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_speculates(parsed, path):
    assert parsed[path.stem]["speculative_algorithm"] == "FASTMTP"
    assert parsed[path.stem]["speculative_num_steps"] == 3


def test_models_and_heads(parsed):
    models = {
        name: (p["model_path"], p["speculative_draft_model_path"]) for name, p in parsed.items()
    }
    assert models["mimo-7b-rl"] == ("XiaomiMiMo/MiMo-7B-RL", None)
    assert models["tencentbac-fastmtp"] == ("TencentBAC/FastMTP", None)
    assert models["qwen3-8b"] == ("Qwen/Qwen3-8B", "heads/qwen3-8b")
    assert parsed["mimo-7b-rl"]["trust_remote_code"] is True
    assert parsed["qwen3-8b"]["trust_remote_code"] is False


def test_the_demo_file_says_what_the_demo_does(parsed):
    speculation = {"speculative_algorithm": "FASTMTP", "speculative_num_steps": 3}
    # The dtype depends on the machine, so `fastmtp serve` gives it.
    assert parsed["smollm2-demo"] == {**parsed["demo"], **speculation, "dtype": "auto"}
    assert parsed["smollm2-demo"]["disable_radix_cache"] is True


def test_the_command_line_wins(parsed):
    assert parsed["overridden"]["speculative_num_steps"] == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_says_how_it_is_used(path):
    first = path.read_text().split("\n\n")[0]
    assert f"--config configs/serve/{path.name}" in first
