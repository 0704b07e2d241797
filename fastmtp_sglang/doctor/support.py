"""The page docs/limits.md: what works and how that was seen, and every refusal, from its table.

    python -m fastmtp_sglang.doctor.support > docs/limits.md

A test compares the page with what this prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastmtp_sglang.contract.limits import LIMITS, NOT_ADAPTIVE, ON_A_CPU, Limit, flag_of
from fastmtp_sglang.contract.tree_shape import MAX_ROWS, MAX_TOP_K
from fastmtp_sglang.doctor.parity import PARITY, path_of
from fastmtp_sglang.serving.requests.guards import GUARDED

# Feature, and the tests that show it; each is a file of this repository.
WORKS = (
    ("greedy decoding, any batch size, streamed or not", "tests/served/test_equality.py"),
    ("overlap and synchronous scheduling", "tests/served/test_equality.py"),
    ("chunked prefill, page sizes 1 and 16, prefix cache", "tests/served/test_equality.py"),
    ("mixed chunks, pages of 64 tokens", "tests/served/test_rejection.py"),
    ("EOS, stop token ids, stop strings, every output length", "tests/served/test_equality.py"),
    (
        "frequency, presence and repetition penalty, logit_bias, min_new_tokens",
        "tests/served/test_penalties.py",
    ),
    ("temperature, top_k, top_p and min_p, in distribution", "tests/served/test_sampling.py"),
    (
        "`seed` (`sampling_seed`): the same tokens with and without speculation",
        "tests/served/test_seeds.py",
    ),
    (
        "--speculative-use-rejection-sampling, --speculative-use-block-verification, in "
        "distribution",
        "tests/served/test_sampling.py",
    ),
    (
        "logprobs of output and prompt, top-k; usage; streaming; hidden states",
        "tests/served/test_outputs.py",
    ),
    ("JSON schema, regex, EBNF (xgrammar)", "tests/served/test_structured_output.py"),
    ("tool calls, forced and free", "tests/served/test_tool_calls.py"),
    (
        "streamed tool calls and reasoning, of SGLang's parsers",
        "tests/serving/requests/test_streamed_tokens.py",
    ),
    (
        "counters: 1 + verifications + accepted drafts are the tokens of an answer",
        "tests/served/test_acceptance.py",
    ),
    ("aborts, clients that hang up, retraction, priority", "tests/served/test_scheduling.py"),
    ("a warm prefix cache drafts as a cold one", "tests/served/test_scheduling.py"),
    ("draft vocabularies, a list for each row of a batch", "tests/served/test_routing.py"),
    (
        "a request's own tokens beside its list, in chains, trees and rejection sampling",
        "tests/served/test_own_tokens.py",
    ),
    ("K chosen while serving (--speculative-adaptive)", "tests/served/test_adaptive.py"),
    (
        "chains, trees and plain decoding by turns (--speculative-adaptive with trees)",
        "tests/served/test_hidden_states.py",
    ),
    ("a real model, its trained head and draft vocabulary", "tests/served/test_real_model.py"),
    (
        "a head that drafts nothing useful is named in the log",
        "tests/serving/adaptive/test_acceptance_watch.py",
    ),
    ("`sglang serve`, `python -m sglang.launch_server`", "tests/served/test_entry_points.py"),
    (
        "two tensor-parallel ranks or replicas: draft vocabularies, --speculative-adaptive",
        "tests/served/test_tensor_parallel.py",
    ),
    (
        "two pipeline stages: seeds, penalties, grammars, logit processors, draft trees",
        "tests/served/test_pipeline.py",
    ),
    (
        "prefill/decode disaggregation (Mooncake over TCP): languages, penalties, first drafts",
        "tests/served/test_disaggregation.py",
    ),
    ("--enable-deterministic-inference", "tests/served/test_seeds.py"),
    (
        "`openai`, `lm-eval` and SGLang's `bench_serving` get the same as without speculation",
        "tests/served/test_clients.py",
    ),
    (
        "new weights from a folder, tensors or a trainer; the head keeps its own",
        "tests/served/test_weight_updates.py",
    ),
    ("CPU profiles, sessions, release and resume", "tests/served/test_every_route.py"),
    (
        "odd values in every field and at every route: the server goes on",
        "tests/served/test_every_route.py",
    ),
    (
        "custom logit processors, with the tokens that each row follows",
        "tests/served/test_logit_processors.py",
    ),
    (
        "DP attention on two ranks: chains, trees, draft vocabularies, ranks without a request",
        "tests/served/test_attention_ranks.py",
    ),
    (
        "LoRA adapters on the target, several in a batch, loaded and unloaded while serving",
        "tests/served/test_lora.py",
    ),
    ("several tokenizer workers", "tests/served/test_tokenizer_workers.py"),
    ("several servers behind SGLang's router", "tests/served/test_scale_out.py"),
    ("`sglang.Engine`", "tests/served/test_entry_points.py"),
    (
        "heads for Llama, Qwen2, Qwen3, Gemma 3 (text); MiMo's native layer",
        "tests/served/test_hidden_states.py",
    ),
)
# Written for, and never run: no GPU was at hand.
UNPROVEN = (
    "CUDA and ROCm: graphs, attention backends, the Triton kernels (interpreted and compiled only)",
    "tensor parallelism on GPUs; with a draft vocabulary it needs one collective a draft step",
    "quantized targets; a quantized lm_head with a draft vocabulary (its rows are read through its "
    "layer; of a biased one all tokens are scored and masked), whose formats need GPUs",
    "prefill/decode disaggregation on GPUs",
    "DP attention on GPUs",
    "pipelines on GPUs",
    "tool calls and reasoning streamed in runs of several tokens: of the parser response_template, "
    "and where SGLang parses token ids (inkling, deepseek-recipe, gpt-oss at /v1/responses)",
    "LoRA adapters on GPUs; --rl-on-policy-target",
    "the hierarchical cache (--enable-hierarchical-cache), which needs a GPU",
    "native MTP layers of multimodal targets; heads of `fastmtp head init` refuse such targets",
)


def page() -> str:
    """Return docs/limits.md, in markdown."""
    return "\n".join(
        (
            "# What works, and what is refused",
            "",
            "Made by `python -m fastmtp_sglang.doctor.support` from the tables that refuse; "
            "do not edit.",
            "",
            "## Works on a CPU, token for token",
            "",
            *_table(("feature", "shown by"), ((what, f"`{test}`") for what, test in WORKS)),
            "",
            "## Beside SGLang's own EAGLE",
            "",
            "What is said of EAGLE is our reading of SGLang 0.5.23; of pipelines it was seen.",
            "",
            *_table(
                ("feature", "SGLang's EAGLE", "FASTMTP", "shown by"),
                ((x.name, x.eagle, x.fastmtp, _test(x.shown_by)) for x in PARITY),
            ),
            "",
            "## Not proven",
            "",
            *(f"- {what}" for what in UNPROVEN),
            "",
            "## Refused at start-up",
            "",
            "Before any weight is read, with the flag, its value, the reason and the way out.",
            "",
            *_table(
                ("flag", "refused", "reason", "instead", "SGLang's EAGLE"),
                ((f"`{x.flag}`", _when(x), x.reason, x.remedy, x.eagle) for x in LIMITS),
            ),
            "",
            "`--speculative-num-steps` is at least 1; `--speculative-eagle-topk` is 1 (a chain)",
            f"to {MAX_TOP_K} (a tree); `--speculative-num-draft-tokens` is K + 1 for a chain and,",
            f"for a tree, from K + 1 to one more than is drafted, at most {MAX_ROWS}. On the CPU",
            f"platform top-k times K of a tree is at most {MAX_ROWS}. Trees do not go with",
            "`--speculative-use-rejection-sampling` and `--speculative-use-block-verification`.",
            "",
            "`--pp-size` above 1 asks for SGLang's environment variable `SGLANG_ENABLE_PP_SPEC=1`.",
            "",
            "With `--speculative-adaptive` also: "
            + ", ".join(f"`{flag_of(field)}`" for field, _ in NOT_ADAPTIVE)
            + ".",
            "",
            "On the CPU platform also, with or without speculation:",
            "",
            *_table(
                ("flag", "reason", "instead"),
                ((f"`{x.flag}`", x.reason, x.remedy) for x in ON_A_CPU),
            ),
            "",
            "## Refused requests",
            "",
            "With HTTP 400; the other requests of the batch go on: prompts without tokens, or with",
            "ids that the model does not have, and a `lang` that is no text. With speculation",
            "SGLang takes the places of drafts (K + 1, for a tree more) off the context: a request",
            "that needs the last of them is refused too.",
            "",
            "## What would end SGLang alone",
            "",
            "SGLang 0.5.23 carries these out in the loop that all requests share, where an",
            "exception ends the server. With FASTMTP, and on the CPU platform with any algorithm:",
            "",
            *_table(("asked for", "answer", "reported as"), GUARDED),
            "",
            "Odd bodies of `/v1/chat/completions`, `/invocations` and administrative calls may",
            "get HTTP 500 from SGLang's own models of them; the server goes on.",
            "",
        )
    )


def _test(shown_by: str) -> str:
    path = path_of(shown_by)
    return path if path == shown_by else f"`{path}`"


def _when(limit: Limit) -> str:
    if limit.refused is None:
        return "any other value than the default"
    return ", ".join(f"`{value}`" for value in (0, 1, 2, 8) if limit.applies(value))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


if __name__ == "__main__":
    print(page(), end="")
