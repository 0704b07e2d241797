"""Clients that no one here wrote get the same from a server with speculation as from one without.

The `openai` package, SGLang's `bench_serving` and, where it can be installed, `lm-eval`.
Run alone: pytest -m "" tests/served/test_clients.py (starts two SmolLM2 servers).
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv

import openai
import pytest

SERVERS = "smollm2", "smollm2-fastmtp"
PROMPT = [{"role": "user", "content": "Tell me about the moon in three sentences."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Alan"]}, "born": {"type": "integer"}},
    "required": ["name", "born"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
FORCED = {"type": "function", "function": {"name": "get_weather"}}
CHATS = {
    "plain": {},
    "stop": {"stop": [" of", "."]},
    "stop at once": {"stop": ["The"]},
    "log probabilities": {"logprobs": True, "top_logprobs": 3},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    "bias": {"logit_bias": {"260": -100, "28": 3}},
    "several with a seed": {"n": 3, "temperature": 0.8, "top_p": 0.9, "seed": 11},
    "structured": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "strict": True, "schema": SCHEMA},
        }
    },
    "tools": {"tools": [TOOL], "tool_choice": FORCED},
}


@pytest.fixture(scope="module")
def clients(servers) -> list[openai.OpenAI]:
    return [openai.OpenAI(base_url=f"{servers(kind)}/v1", api_key="none") for kind in SERVERS]


def seen(reply):
    """What a client sees, but for what names a reply and its time."""
    content = reply.model_dump()
    for name in ("id", "created", "metadata"):
        content.pop(name, None)
    return json.loads(json.dumps(content), object_hook=_without_ids, parse_float=_rounded)


def _without_ids(mapping: dict) -> dict:
    """A tool call's name for itself is random."""
    return {key: value for key, value in mapping.items() if key != "id"}


def _rounded(number: str) -> float:
    return round(float(number), 3)


def together(chunks) -> tuple:
    """Text, tool arguments, reasons and usage of a stream, choice by choice."""
    texts: dict[int, str] = {}
    ends, usage = {}, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            calls = choice.delta.tool_calls or []
            added = [choice.delta.content, *(call.function.arguments for call in calls)]
            texts[choice.index] = texts.get(choice.index, "") + "".join(filter(None, added))
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    return texts, ends, usage.completion_tokens


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", CHATS)
def test_openai_chat(clients, case, stream):
    options = {"temperature": 0, "max_tokens": 40, **CHATS[case], "model": "default"}
    if stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    replies = [client.chat.completions.create(messages=PROMPT, **options) for client in clients]
    plain, fast = [(together if stream else seen)(reply) for reply in replies]
    assert fast == plain
    if not stream:
        assert all(choice["finish_reason"] for choice in plain["choices"])
        assert len(plain["choices"]) == CHATS[case].get("n", 1)


@pytest.mark.parametrize("echo", [False, True], ids=["answer", "with the prompt"])
def test_openai_completions(clients, echo):
    """Of several prompts at once; `lm-eval` asks for the probabilities of a prompt so."""
    prompts = ["The capital of France is", "def add(a, b):\n"]
    options = {"model": "default", "temperature": 0, "max_tokens": 24, "logprobs": 2, "echo": echo}
    plain, fast = [seen(client.completions.create(prompt=prompts, **options)) for client in clients]
    assert fast == plain
    assert plain["choices"][0]["text"].startswith(prompts[0]) == echo


def test_openai_errors(clients):
    """Refusals are the same too."""
    said = []
    for client in clients:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(messages=PROMPT, model="default", temperature=-1)
        said.append(refused.value.message)
    assert said[0] == said[1]


@pytest.mark.slow
def test_bench_serving(servers, checkpoints, tmp_path):
    """SGLang's own: 24 prompts of random tokens, eight at once, to their last tokens."""
    answers = []
    for kind in SERVERS:
        details = tmp_path / f"{kind}.jsonl"
        command = [
            *(sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang"),
            *("--base-url", servers(kind), "--tokenizer", str(checkpoints.smollm2)),
            *("--model", str(checkpoints.smollm2), "--dataset-name", "random-ids"),
            *("--random-input-len", "64", "--random-output-len", "32", "--num-prompts", "24"),
            *("--max-concurrency", "8", "--seed", "1", "--temperature", "0", "--disable-tqdm"),
            *("--output-file", str(details), "--output-details"),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True, env=offline())
        result = json.loads(details.read_text())
        assert result["completed"] == 24
        answers.append((result["generated_texts"], result["output_lens"]))
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory) -> list[str]:
    """The command, in an environment of its own: what it brings along starts threads."""
    folder = tmp_path_factory.mktemp("lm-eval")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (library,) = folder.glob("lib/python*/site-packages")
    (library / "shared.pth").write_text(sysconfig.get_path("purelib"))
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "lm-eval[api]"], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"lm-eval cannot be installed: {installed.stderr[-300:]}")
    return [str(python), "-m", "lm_eval", "run"]


TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
metadata: {{version: 1}}
"""
GENERATED = """
task: sums
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 24, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match}]
"""
CHOSEN = """
task: choices
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: ["{{answer}}", "{{wrong}}"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("local-completions", "sums"),
        ("local-completions", "choices"),
        ("local-chat-completions", "sums"),
    ],
)
def test_lm_eval(servers, checkpoints, lm_eval, tmp_path, model, task):
    """A small task of sums: the answers, the probabilities of choices, and the scores."""
    rows = [
        {"question": f"What is {a} plus {b}?", "answer": f" {a + b}", "wrong": f" {a + b + 1}"}
        for a, b in ((2, 3), (10, 7), (41, 9), (5, 5), (100, 20), (8, 1), (6, 7), (30, 12))
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("sums", GENERATED), ("choices", CHOSEN)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(data=data) + text)
    path = "chat/completions" if "chat" in model else "completions"
    results = []
    for kind in SERVERS:
        output = tmp_path / kind
        arguments = [
            f"base_url={servers(kind)}/v1/{path},model=default,num_concurrent=4,max_retries=1",
            f"tokenizer_backend=huggingface,tokenizer={checkpoints.smollm2}",
        ]
        command = [
            *(*lm_eval, "--model", model, "--model_args", ",".join(arguments)),
            *("--tasks", task, "--include_path", str(tmp_path), "--output_path", str(output)),
            *("--log_samples", *(["--apply_chat_template"] if "chat" in model else [])),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=offline())
        assert done.returncode == 0, done.stderr[-3000:]
        (samples,) = output.rglob("samples_*.jsonl")
        read = [json.loads(line, parse_float=_rounded) for line in samples.open()]
        results.append([(row["doc_id"], row["resps"], row["filtered_resps"]) for row in read])
    assert len(results[0]) == len(rows)
    assert results[0] == results[1]


def offline() -> dict[str, str]:
    """No hub is asked; the platform is that of the servers, or none."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
