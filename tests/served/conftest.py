"""Real servers on the CPU, started when first used and shared by the tests of this folder.

`servers(name)` gives the base URL of a server, by the names in `_flags`. Baselines run the same
target without speculation. Logs go to pytest's temporary directory and are named in a failure.
"""

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import adapters
import chains
import pytest
import tiny_models as models
from engine_runs import EngineRun, run_all
from fake_endpoint import read_lines
from warm_python import WarmPython

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.config import GEMMA
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.servers.server_process import ServerProcess, launch_prefix
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME

# For the warm process and all that is forked from it, whoever asks for it.
os.environ["HF_HUB_OFFLINE"] = "1"
# A process that is forked may have but one thread, and libraries start theirs when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_COMMON = (
    *("--dtype", "float32", "--max-total-tokens", "30000", "--context-length", "4096"),
    # Idle servers must not eat the two cores that the busy one needs.
    "--sleep-on-idle",
    "--enable-return-hidden-states",
    # What other servers allocate while this one loads counts as its own, and SGLang gives up.
    *("--mem-fraction-static", "0.95"),
)
# SGLang puts running requests back every few steps, as it does when memory runs short.
_ENV = {
    "mimo-retracting": {"SGLANG_TEST_RETRACT": "1"},
    "mimo-tree-pages": {"SGLANG_TEST_RETRACT": "1"},
    # SGLang wants a core for each rank on a machine of one NUMA node.
    **{
        f"chains-{kind}two-ranks": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
        for kind in ("", "routed-", "own-", "adaptive-")
    },
    **{
        f"qwen3-ranks{kind}": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
        for kind in ("", "-masked", "-listed", "-tree")
    },
    "chains-adaptive-two-replicas": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
    **{
        kind: {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_ENABLE_PP_SPEC": "1"}
        for kind in ("qwen3-stages", "qwen3-stages-tree")
    },
}
# In interpreters of their own, by either command of SGLang's; others are forked.
_COMMANDS = {
    "mimo-by-serve": launch_prefix(),
    "chains-by-launch-server": [sys.executable, "-m", "sglang.launch_server"],
}
# Each takes 2 to 3 GB, and the suite's other process runs as many beside them.
_MAX_RUNNING = 3


# Files in an order in which each server is started once, or nearly so.
_ORDER = (
    *("whitelist", "entry_points", "distillation", "bench", "peers", "real_model", "tool_calls"),
    "clients",
    "hidden_states",
    *(
        "routing",
        "own_tokens",
        "lean_step",
        "acceptance",
        "adaptive",
        "penalties",
        "logit_processors",
        "soak",
        "outputs",
    ),
    *("every_route", "weight_updates", "structured_output", "scale_out", "scheduling", "equality"),
    *("sampling", "seeds", "rejection", "tree", "tensor_parallel", "families"),
    *("lora", "attention_ranks", "pipeline"),
    "tokenizer_workers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort this folder's tests; a file that `_ORDER` lacks comes first."""
    names = [f"test_{name}" for name in _ORDER]

    def place(item: pytest.Item) -> int:
        return names.index(item.path.stem) if item.path.stem in names else -1

    here = [item for item in items if item.path.parent == Path(__file__).parent]
    here.sort(key=place)
    others = [item for item in items if item.path.parent != Path(__file__).parent]
    items[:] = [*others, *here]


@dataclass(frozen=True)
class Checkpoints:
    """Directories of the models under test."""

    smollm2: Path
    smollm2_head: Path
    mimo: Path
    mimo_head: Path
    plain: Path
    chains: Path
    chains_head: Path
    reversed_chains: Path
    qwen3: Path
    gemma: Path
    adapters: Path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Checkpoints:
    root = tmp_path_factory.mktemp("checkpoints")
    head = SMOLLM2.draft_head()
    assert head.trained
    plain = models.add_loops(models.target(root / "plain", "qwen2", output_scale=0.01))
    # Two heads of different quality: the native one drafts well, the other one less.
    native = models.agreeing_head(plain, root / "native-head", noise=0.1)
    models.agreeing_head(plain, root / "mimo-head", noise=0.2)
    mimo = models.as_mimo(plain, native, root / "mimo")
    chained = models.chain_target(root / "chains", chains.SUCCESSOR)
    models.agreeing_head(chained, root / "chains-head")
    # One vocabulary beside the head, where it is found without a flag; the other is a flag's.
    beside_head = root / "chains-head" / FILE_NAME
    beside_head.parent.mkdir()
    chains.routed(chained).save(beside_head)
    chains.english_only(chained).save(root / "english-only.safetensors")
    chains.routed(chained, own_tokens=64).save(root / "own.safetensors")
    # Other families: heads that draft well, from a list that lacks an eighth of all tokens.
    others = {}
    for family in ("qwen3", GEMMA):
        others[family] = models.target(root / family, family, output_scale=0.01)
        models.agreeing_head(others[family], root / f"{family}-head")
        vocabulary = root / f"{family}-head" / FILE_NAME
        vocabulary.parent.mkdir()
        chains.nearly_all(others[family]).save(vocabulary)
    return Checkpoints(
        smollm2=SMOLLM2.checkpoint(),
        smollm2_head=head.path,
        mimo=mimo,
        mimo_head=root / "mimo-head",
        plain=plain,
        chains=chained,
        chains_head=root / "chains-head",
        reversed_chains=models.chain_target(root / "reversed-chains", chains.PREDECESSOR),
        qwen3=others["qwen3"],
        gemma=others[GEMMA],
        adapters=_adapters(others["qwen3"]),
    )


def _adapters(target: Path) -> Path:
    """Of other ranks and layers, in a directory of one directory each."""
    root = target.parent / "adapters"
    adapters.adapter(target, root / "deep", seed=1, rank=8)
    adapters.adapter(target, root / "outer", seed=2, rank=4, modules=adapters.OUTER, std=0.3)
    adapters.adapter(target, root / "small", seed=3, rank=3, modules=("o_proj", "down_proj"))
    return root


def _flags(kind: str, checkpoints: Checkpoints) -> tuple[Path, tuple[str, ...]]:
    speculate = ("--speculative-algorithm", "fastmtp")
    draft = "--speculative-draft-model-path"
    # Its keys and values take 46 kB a token; the longest prompt is of 1,500 tokens.
    real = ("--max-total-tokens", "12000", "--tool-call-parser", "hermes")
    two_ranks = ("--tp-size", "2")
    attention_ranks = (*two_ranks, "--attn-dp-size", "2")
    stages = ("--pp-size", "2", "--enable-custom-logit-processor")
    # Fewer slots than adapters; without an adapter counts as one.
    adapted = (
        *("--max-loras-per-batch", "2", "--lora-paths"),
        *(f"{path.name}={path}" for path in sorted(checkpoints.adapters.iterdir())),
    )
    chat = ("--chat-template", "chatml")
    deterministic = "--enable-deterministic-inference"
    processors = "--enable-custom-logit-processor"
    own = (
        *(*speculate, draft, str(checkpoints.chains_head)),
        *("--speculative-token-map", str(checkpoints.chains.parent / "own.safetensors")),
    )
    return {
        "smollm2": (checkpoints.smollm2, real),
        "smollm2-fastmtp": (
            checkpoints.smollm2,
            (*speculate, draft, str(checkpoints.smollm2_head), *real),
        ),
        "smollm2-bfloat16": (checkpoints.smollm2, (*real, "--dtype", "bfloat16")),
        # Prompts are cut in other places than above.
        "smollm2-bfloat16-fastmtp": (
            checkpoints.smollm2,
            (
                *(*speculate, draft, str(checkpoints.smollm2_head), *real),
                *("--dtype", "bfloat16", "--chunked-prefill-size", "96"),
            ),
        ),
        "mimo": (checkpoints.mimo, ()),
        # Only so do SGLang's own penalties and processors see the tokens before (`penalties`).
        "mimo-synchronous": (checkpoints.mimo, ("--disable-overlap-schedule", processors)),
        "mimo-native": (checkpoints.mimo, (*speculate, *chat, processors)),
        "mimo-by-serve": (checkpoints.mimo, speculate),
        "mimo-rejection": (
            checkpoints.mimo,
            (*speculate, "--speculative-use-rejection-sampling"),
        ),
        "mimo-block": (
            checkpoints.mimo,
            (*speculate, "--speculative-use-block-verification"),
        ),
        # While prompts come in, running requests share their chunks and draft nothing.
        "mimo-mixed": (
            checkpoints.mimo,
            (
                *(*speculate, "--speculative-use-rejection-sampling"),
                *("--page-size", "64", "--enable-mixed-chunk", "--chunked-prefill-size", "128"),
            ),
        ),
        "mimo-retracting": (
            checkpoints.mimo,
            (
                *(*speculate, "--enable-metrics", "--enable-priority-scheduling"),
                *("--max-running-requests", "12"),
            ),
        ),
        "mimo-adaptive": (checkpoints.mimo, (*speculate, "--speculative-adaptive")),
        # The other scheduling, another K, small chunks and pages: what the first one leaves out.
        "mimo-head-synchronous": (
            checkpoints.mimo,
            (
                *(*speculate, draft, str(checkpoints.mimo_head), "--speculative-num-steps", "5"),
                *("--disable-overlap-schedule", "--chunked-prefill-size", "256"),
                *("--page-size", "16"),
            ),
        ),
        "mimo-tokenizers": (
            checkpoints.mimo,
            (*speculate, *chat, "--tokenizer-worker-num", "2", "--enable-metrics"),
        ),
        "mimo-deterministic": (checkpoints.mimo, (deterministic,)),
        "mimo-deterministic-native": (checkpoints.mimo, (*speculate, deterministic)),
        "mimo-one": (checkpoints.mimo, (*speculate, "--speculative-num-steps", "1")),
        # Trees, with the other scheduling and pages in the second one.
        "mimo-tree": (checkpoints.mimo, (*speculate, *_tree(3, 8, 16), processors)),
        "mimo-tree-pages": (
            checkpoints.mimo,
            (
                *(*speculate, draft, str(checkpoints.mimo_head), *_tree(4, 8, 32)),
                *("--disable-overlap-schedule", "--chunked-prefill-size", "256"),
                *("--page-size", "16", "--max-running-requests", "12"),
            ),
        ),
        "smollm2-tree": (
            checkpoints.smollm2,
            (*speculate, draft, str(checkpoints.smollm2_head), *real, *_tree(3, 8, 16)),
        ),
        "chains-tree": (
            checkpoints.chains,
            (*speculate, draft, str(checkpoints.chains_head), *_tree(3, 2, 8), "--enable-metrics"),
        ),
        "chains": (checkpoints.chains, ()),
        "chains-routed": (
            checkpoints.chains,
            (
                *(*speculate, draft, str(checkpoints.chains_head), *chat),
                *("--enable-metrics", "--decode-log-interval", "5"),
            ),
        ),
        "chains-by-launch-server": (
            checkpoints.chains,
            (*speculate, draft, str(checkpoints.chains_head)),
        ),
        "chains-two-ranks": (checkpoints.chains, two_ranks),
        "chains-routed-two-ranks": (
            checkpoints.chains,
            (*speculate, draft, str(checkpoints.chains_head), *two_ranks),
        ),
        "chains-adaptive": (
            checkpoints.chains,
            (
                *(*speculate, draft, str(checkpoints.chains_head)),
                *("--speculative-adaptive", "--disable-overlap-schedule"),
            ),
        ),
        "chains-adaptive-two-ranks": (
            checkpoints.chains,
            (
                *(*speculate, draft, str(checkpoints.chains_head), *two_ranks),
                "--speculative-adaptive",
            ),
        ),
        "chains-adaptive-two-replicas": (
            checkpoints.chains,
            (
                *(*speculate, draft, str(checkpoints.chains_head), "--dp-size", "2"),
                "--speculative-adaptive",
            ),
        ),
        "chains-rejection": (
            checkpoints.chains,
            (
                *(*speculate, draft, str(checkpoints.chains_head)),
                "--speculative-use-rejection-sampling",
            ),
        ),
        "chains-english-only": (
            checkpoints.chains,
            (
                *(*speculate, draft, str(checkpoints.chains_head)),
                "--speculative-token-map",
                str(checkpoints.chains.parent / "english-only.safetensors"),
                "--disable-overlap-schedule",
            ),
        ),
        # Prompts come in chunks, the last one of a few tokens.
        "chains-own": (
            checkpoints.chains,
            (
                *(*own, "--enable-metrics", "--decode-log-interval", "5"),
                *("--chunked-prefill-size", "48"),
            ),
        ),
        "chains-own-tree": (
            checkpoints.chains,
            (*own, *_tree(3, 2, 8), "--disable-overlap-schedule"),
        ),
        "chains-own-two-ranks": (checkpoints.chains, (*own, *two_ranks)),
        "chains-own-rejection": (
            checkpoints.chains,
            (*own, "--speculative-use-rejection-sampling"),
        ),
        "qwen3-listed": (
            checkpoints.qwen3,
            (*speculate, draft, f"{checkpoints.qwen3}-head"),
        ),
        "qwen3": (checkpoints.qwen3, ()),
        "qwen3-adapters": (checkpoints.qwen3, adapted),
        "qwen3-adapters-listed": (
            checkpoints.qwen3,
            (*speculate, draft, f"{checkpoints.qwen3}-head", *adapted),
        ),
        "qwen3-ranks": (checkpoints.qwen3, attention_ranks),
        **{
            f"qwen3-ranks-{name}": (
                checkpoints.qwen3,
                (*speculate, draft, f"{checkpoints.qwen3}-head", *attention_ranks, *flags),
            )
            for name, flags in {
                "masked": (),
                "listed": ("--enable-dp-lm-head",),
                "tree": ("--enable-dp-lm-head", *_tree(3, 2, 8)),
            }.items()
        },
        "qwen3-stages": (
            checkpoints.qwen3,
            (*speculate, draft, f"{checkpoints.qwen3}-head", *stages),
        ),
        "qwen3-stages-tree": (
            checkpoints.qwen3,
            (*speculate, draft, f"{checkpoints.qwen3}-head", *stages, *_tree(3, 2, 8)),
        ),
        "gemma-listed": (
            checkpoints.gemma,
            (*speculate, draft, f"{checkpoints.gemma}-head"),
        ),
        "gemma-listed-tree": (
            checkpoints.gemma,
            (*speculate, draft, f"{checkpoints.gemma}-head", *_tree(3, 2, 8)),
        ),
        "mimo-nextn": (
            checkpoints.mimo,
            (
                *("--speculative-algorithm", "NEXTN", "--speculative-num-steps", "3"),
                *("--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"),
            ),
        ),
    }[kind]


def _tree(num_steps: int, topk: int, rows: int) -> tuple[str, ...]:
    return (
        *("--speculative-num-steps", str(num_steps), "--speculative-eagle-topk", str(topk)),
        *("--speculative-num-draft-tokens", str(rows)),
    )


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """A Python that has imported SGLang, for what starts many."""
    python = WarmPython(tmp_path_factory.mktemp("warm") / "log")
    yield python
    python.stop()


@pytest.fixture(scope="session")
def engine_runs(tmp_path_factory, warm) -> dict[str, EngineRun]:
    return run_all(tmp_path_factory.mktemp("runs") / "engines", warm)


@pytest.fixture(scope="session")
def servers(checkpoints, warm, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    running: dict[str, ServerProcess] = {}  # the least recently used first
    failed: dict[str, str] = {}
    # Tests ask from several threads.
    lock = threading.Lock()

    def stop(server: ServerProcess) -> None:
        # Nobody waits for its answers: SGLang would take seconds to see to that.
        server.stop(timeout=0)

    def url(kind: str) -> str:
        with lock:
            return start(kind)

    def start(kind: str) -> str:
        if kind in failed:
            pytest.fail(f"the server {kind} did not start: {failed[kind]}")
        if kind not in running:
            if len(running) == _MAX_RUNNING:
                stop(running.pop(next(iter(running))))
            model, flags = _flags(kind, checkpoints)
            server = ServerProcess(
                model,
                [*_COMMON, *flags],
                env={
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
                    "SGLANG_TORCH_PROFILER_DIR": str(logs),
                    # It has answered a request of its own before it says that it is healthy.
                    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
                    **_ENV.get(kind, {}),
                },
                log_path=logs / f"{kind}.log",
            )
            command = _COMMANDS.get(kind) or warm.launch_prefix()
            server.command[: len(launch_prefix())] = command
            try:
                server.start()
            except FastMTPError as error:
                failed[kind] = str(error)
                raise
            running[kind] = server
        running[kind] = running.pop(kind)
        running[kind].check_alive()
        return running[kind].url

    url.logs = logs
    yield url
    for server in running.values():
        stop(server)
