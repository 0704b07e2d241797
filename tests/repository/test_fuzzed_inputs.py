"""Files of every kind of wrongness, given to every command that reads files.

Whatever is in them and whatever they are called: exit code 0 or 2, one line of error, no traceback,
and no output half-written. Both come from a fixed seed.

Alone: pytest tests/repository/test_fuzzed_inputs.py
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from fastmtp_sglang.cli import main
from fastmtp_sglang.distill.records import Record, Sampling, read_records
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary

pytestmark = pytest.mark.heavy

SEED = 20261128
CASES = 25
NOBODY = "http://127.0.0.1:9"
VALUES = (
    None, True, -1, 0, 1.5, 10**30, float("nan"), "", " ", "x" * 3000, "\ud800", "caf\u00e9", [],
    {}, [[]], [None], [1, "a"], [10**30], [-1], [759], {"a": 1}, [{"role": "user"}], [{"role": 5}],
    [{"role": "user", "content": None}], [{"from": "human", "value": 7}], ["a", " "], "user",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model directory without weights: 300 byte-level tokens, 310 rows of head."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|user|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a story of the sea and of a lighthouse"] * 5, trainer)
    folder = tmp_path_factory.mktemp("tiny")
    template = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=template
    ).save_pretrained(folder)
    config = {"model_type": "llama", "vocab_size": 310, "hidden_size": 8}
    config |= {"max_position_embeddings": 512, "architectures": ["LlamaForCausalLM"]}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rows(tiny: Path) -> list[dict]:
    """Every command takes these."""
    sampling = Sampling(temperature=0, top_k=-1, top_p=1, max_new_tokens=9)
    return [
        Record(
            id=f"s/{number}/0/0", conversation=f"s/{number}/0", turn=0, source="s",
            messages=[{"role": "user", "content": f"Question {number} of caf\u00e9?"}],
            prompt_ids=[1, 70, 71], answer_ids=[*range(60 + number, 100), 0], answer="some words",
            finish_reason="stop", sampling=sampling, model=str(tiny), task="t",
        ).model_dump()
        for number in range(12)
    ]  # fmt: skip


def spoiled(rng: random.Random, good: list[dict]) -> bytes:
    """Lines of JSON with one thing wrong, or only unusual."""
    lines: list[object] = [dict(row) for row in good]
    at = rng.randrange(len(lines))
    kind = rng.choice(["good", "value", "field", "line", "bytes", "encoding", "ends", "text"])
    if kind == "value":
        lines[at] |= {rng.choice(list(good[0])): rng.choice(VALUES)}
    elif kind == "field":
        del lines[at][rng.choice(list(good[0]))]
    elif kind == "line":
        lines[at] = rng.choice(VALUES)
    data = "".join(json.dumps(line, ensure_ascii=rng.random() < 0.5) + "\n" for line in lines)
    raw = data.encode("utf-8", "surrogatepass")
    if kind == "bytes":
        where = rng.randrange(len(raw))
        wrong = rng.choice(
            [rng.randbytes(1), rng.randbytes(9), b"", b"\0", b"\n", b"\xff\xfe", b'"']
        )
        raw = raw[:where] + wrong + raw[where + rng.choice([0, 1, 50]) :]
    elif kind == "encoding":
        name = rng.choice(["utf-8-sig", "latin-1", "utf-16", "utf-32", "cp1252"])
        raw = json.dumps(lines[at], ensure_ascii=False).encode(name, "replace") + b"\n" + raw
    elif kind == "ends":
        raw = rng.choice(
            [raw.replace(b"\n", b"\r\n"), raw.replace(b"\n", b"\r"), raw[:-1], b"\n\n"]
        )
        raw = rng.choice([raw, raw.replace(b"\n", b"\n\n\n")])
    elif kind == "text":
        raw = rng.choice(
            [
                b"",
                b"\xef\xbb\xbf",
                b"[" * 50_000,
                b"9" * 5000,
                b"{}",
                b"[]\n",
                b"null\n",
                b"\x1f\x8b\x08",
            ]
        )
    return raw


def names(folder: Path, content: bytes) -> Iterator[str]:
    """Paths that are unusual and hold `content`, and some that can hold nothing."""
    for name in ("a=b.jsonl", "a b.jsonl", "[red].jsonl", "\u6587.jsonl", "-x.jsonl", "%s{}.jsonl"):
        (folder / name).write_bytes(content)
        yield str(folder / name)
    (folder / "epoch=1").mkdir()
    (folder / "epoch=1" / "a.jsonl").write_bytes(content)
    yield str(folder / "epoch=1" / "a.jsonl")
    strange = os.fsdecode(os.fsencode(folder) + b"/\xe9.jsonl")
    Path(strange).write_bytes(content)
    yield strange
    (folder / "folder.jsonl").mkdir()
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    yield from (str(folder / "folder.jsonl"), str(folder / "loop.jsonl"), str(folder / "no.jsonl"))
    yield from (f"{folder}/a=b.jsonl/x.jsonl", f"{folder}/{'y' * 300}.jsonl", "/dev/null", ".", "")
    (folder / "cut.json").write_text('{"a": ')
    yield from ("x=", "=x", "datasets:", f"datasets:json?data_files={folder}/cut.json&column=a")


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., int]:
    """Run the command line; tells the exit code, and fails for more than a line of error."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fastmtp", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        code, printed = end.value.code or 0, capsys.readouterr()
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert code in (0, 2), (arguments, printed)
        run.said = printed.err
        if code == 2 and "Usage: " not in printed.err:
            assert len(errors) == 1, (arguments, printed)
            assert printed.err.splitlines()[-1] == errors[0], (arguments, printed)
            assert "Traceback" not in printed.out + printed.err
        return code

    return run


def build(folder: Path, tiny: Path, source: str) -> tuple[list[object], Path]:
    out = folder / "v.safetensors"
    tokens = len(json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"])
    arguments = ["vocab", "build", "--model", tiny, "--output", out, "--size", tokens, "--no-plot"]
    return [*arguments, "--restart", "--", source], out


def clean(folder: Path, tiny: Path, source: str) -> tuple[list[object], Path]:
    out = folder / "kept.jsonl"
    return ["data", "clean", "--output", out, "--min-tokens", "1", "--", source], out


def exclude(folder: Path, tiny: Path, source: str) -> tuple[list[object], Path]:
    out = folder / "kept.jsonl"
    good = folder.parent / "good.jsonl"
    return ["data", "clean", good, "--output", out, f"--exclude={source}"], out


def distill(folder: Path, tiny: Path, source: str) -> tuple[list[object], Path]:
    given = ["--model", tiny, "--endpoint", NOBODY, "--output", folder / "run"]
    return ["distill", *given, f"--prompts={source}"], folder / "none"


def bench(folder: Path, tiny: Path, source: str) -> tuple[list[object], Path]:
    given = ["--endpoint", f"x={NOBODY}", "--api", "openai", "--output", folder / "run"]
    return ["bench", *given, f"--task={source}"], folder / "none"


COMMANDS = (build, clean, exclude, distill, bench)


def check_output(out: Path, code: int) -> None:
    """Whole, or not there; nothing else that is half done beside it."""
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    if code:
        assert not out.exists()
    elif out.suffix == ".safetensors":
        DraftVocabulary.load(out, vocab_size=310, tokenizer_fingerprint=None)
    elif out.suffix == ".jsonl":
        list(read_records([out]))
        json.loads(out.with_suffix(".report.json").read_text())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_whatever_a_file_holds_and_is_called(command, run, tiny, tmp_path):
    rng = random.Random(f"{SEED} {command.__name__}")
    good = rows(tiny)
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good))
    inputs, out_folder = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    sources: list[tuple[str, bytes | None]] = [
        (str(inputs / "f.jsonl"), spoiled(rng, good)) for _ in range(CASES)
    ]
    whole = (tmp_path / "good.jsonl").read_bytes()
    sources += [(name, None) for name in names(inputs, whole)]
    codes = set()
    if command not in (distill, bench):  # which ask a server that is not there
        out_folder.mkdir()
        assert run(*command(out_folder, tiny, str(tmp_path / "good.jsonl"))[0]) == 0, run.said
        shutil.rmtree(out_folder)
    for source, content in sources:
        if content is not None:
            Path(source).write_bytes(content)
        out_folder.mkdir()
        arguments, out = command(out_folder, tiny, source)
        code = run(*arguments)
        check_output(out, code)
        codes.add(code)
        shutil.rmtree(out_folder)
    assert codes == ({2} if command in (distill, bench) else {0, 2})


def test_whatever_a_list_or_a_vocabulary_file_holds(run, tiny, tmp_path):
    rng = random.Random(SEED)
    out = tmp_path / "out" / "v.safetensors"
    out.parent.mkdir()
    file = tmp_path / "en.pt"
    arguments = ["vocab", "import", f"en={file}", "--model", tiny, "--output", out]
    codes = set()
    for ids in ([1, 2, 3], [], [310], [-1], [1, 1], [1.5], ["a"], {"a": 1}, 5, None, [10**30]):
        torch.save(ids, file)
        code = run(*arguments)
        check_output(out, code)
        codes.add(code)
        out.unlink(missing_ok=True)
    assert codes == {0, 2}
    torch.save([1, 2, 3], file)
    assert run(*arguments) == 0
    for path, command in ((out, ["vocab", "show", out]), (file, arguments)):
        whole = path.read_bytes()
        for _ in range(CASES):
            where = rng.randrange(min(len(whole), 3000))
            wrong = rng.choice([rng.randbytes(1), rng.randbytes(30), b""])
            cut = rng.choice([len(whole), where + len(wrong)])
            path.write_bytes((whole[:where] + wrong + whole[where + len(wrong) :])[:cut])
            run(*command)


def test_whatever_a_configuration_holds(run, tmp_path):
    rng = random.Random(SEED)
    good = {"target": str(tmp_path / "no"), "output": str(tmp_path / "run")}
    good |= {"data": {"train": ["a"]}, "optimizer": {"epochs": 1}}
    path = tmp_path / "c.yaml"
    for _ in range(CASES):
        fields = dict(good)
        if rng.random() < 0.5:
            fields[rng.choice([*good, "other"])] = rng.choice([*VALUES[:-1], [1], {"b": []}])
        text = yaml.safe_dump(fields, allow_unicode=rng.random() < 0.5)
        raw = text.encode(rng.choice(["utf-8", "utf-8-sig", "latin-1", "utf-16"]), "replace")
        if rng.random() < 0.4:
            where = rng.randrange(len(raw))
            raw = raw[:where] + rng.randbytes(rng.choice([1, 5])) + raw[where:]
        path.write_bytes(raw)
        assert run("train", path) == 2
        assert not (tmp_path / "run" / "head").exists()


def test_whatever_a_benchmark_directory_holds(run, tmp_path):
    rng = random.Random(SEED)
    requests = tmp_path / "b" / "requests"
    requests.mkdir(parents=True)
    shown = {"configuration": "c", "task": "t", "concurrency": 1, "request_rate": None}
    shown |= {"settings": {}, "server": {}, "environment": {"date": "2026"}, "wall_seconds": 1.0}
    shown |= {"conversations_left_out": 0, "cache_flushed": True}
    record = {"configuration": "c", "task": "t", "prompt_id": "a", "turn": 0, "text": "caf\u00e9"}
    for name, good in (("x.json", [shown]), ("x.jsonl", [record] * 3)):
        (requests / "x.json").write_text(json.dumps(shown))
        (requests / "x.jsonl").write_text(json.dumps(record) + "\n")
        for _ in range(CASES // 2):
            (requests / name).write_bytes(spoiled(rng, good))
            run("bench", "compare", tmp_path / "b", tmp_path / "b", "--json")


def test_starts_of_prompts(run, tiny, tmp_path):
    path = tmp_path / "starts.txt"
    given = ["distill", "--model", tiny, "--endpoint", NOBODY, "--self-prompt", "1"]
    for content in (b"", b"\xef\xbb\xbf", "Caf\u00e9".encode("latin-1"), b"\0", b"Why\n", b"\n \n"):
        path.write_bytes(content)
        assert run(*given, "--output", tmp_path / "out", "--prompt-starts", path) == 2
    for name in (tmp_path, tmp_path / "no", "/dev/null"):
        assert run(*given, "--output", tmp_path / "out", "--prompt-starts", name) == 2


def test_a_traceback_would_be_seen(run, monkeypatch, tmp_path):
    """The check of all these tests itself."""

    def breaks(*_):
        raise KeyError("x")

    monkeypatch.setattr("fastmtp_sglang.distill.records.record_files", breaks)
    with pytest.raises(KeyError):
        run("data", "clean", "a", "--output", tmp_path / "o.jsonl")
