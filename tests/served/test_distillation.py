"""`fastmtp distill` with a real SGLang server that it starts and stops itself.

Alone: pytest tests/served/test_distillation.py (starts one server of a tiny model)
"""

import json

import tiny_models as models
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.distill.store import read_manifest
from fastmtp_sglang.servers import server_process


def test_own_server(warm, monkeypatch, tmp_path, read_lines):
    monkeypatch.setattr(server_process, "launch_prefix", warm.launch_prefix)
    model = models.target(tmp_path / "tiny")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    (model / "chat_template.jinja").write_text(
        template + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"turns": [f"a{i}", "b"]}) + "\n" for i in range(6)))
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app,
        [
            *("distill", "--model", str(model), "--prompts", str(rows), "--output", str(out)),
            *("--max-new-tokens", "24", "--temperature", "1.0", "--top-k", "-1", "--top-p", "1"),
            *("--", "--dtype", "float32", "--max-total-tokens", "4096"),
        ],
    )
    assert result.exit_code == 0, (result.output, result.exception)
    records = read_lines(out)
    counts = read_manifest(out).counts
    assert counts.answers == len(records) >= 6
    assert counts.skipped == {}
    for record in records:
        is_cut = record["finish_reason"] == "length"
        assert (len(record["answer_ids"]) == 24) or not is_cut
        assert (record["answer_ids"][-1] == 2) or is_cut
    assert len({tuple(record["answer_ids"]) for record in records}) > len(records) // 2
