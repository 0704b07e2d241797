"""SGLang's features under its own EAGLE and under FASTMTP, for docs/limits.md.

What is said of EAGLE was read in SGLang 0.5.23; a file of it is named where it does less.
"""

from dataclasses import dataclass

YES, NO = "yes", "no"


@dataclass(frozen=True)
class Feature:
    """One line of the table.

    Attributes:
        name: what a user asks for.
        eagle: what SGLang's EAGLE (NEXTN) makes of it.
        fastmtp: what FASTMTP does.
        shown_by: the test, a file of this repository, or why there is none.
    """

    name: str
    eagle: str
    fastmtp: str
    shown_by: str


PARITY = (
    Feature("greedy answers equal to those without speculation", YES, YES, "served/test_equality"),
    Feature(
        "`seed` / `sampling_seed` with a temperature",
        "ignored; with --enable-deterministic-inference repeatable, but other tokens than without "
        "speculation (`eagle_utils._seeded_verify_coins`)",
        "the tokens of the server without speculation",
        "served/test_seeds",
    ),
    Feature("`--enable-deterministic-inference`", YES, YES, "served/test_seeds"),
    Feature(
        "`--rl-on-policy-target`", YES, "not proven; refused on the CPU platform", "needs GPUs"
    ),
    Feature(
        "frequency, presence and repetition penalty",
        "relaxed: a run's rows share one state (`eagle_utils.eagle_sample`)",
        "exact",
        "served/test_penalties",
    ),
    Feature(
        "min_p; top_k and top_p together",
        "min_p ignored, filters in another order than its sampler's",
        YES,
        "serving/verification/test_verification",
    ),
    Feature(
        "`--enable-custom-logit-processor`",
        "taken, and ignored after the first token",
        "every token",
        "served/test_logit_processors",
    ),
    Feature(
        "several stop strings, EOS within a run",
        "the first of the list wins",
        "the first in the text wins",
        "serving/verification/test_stops",
    ),
    Feature("JSON schema, regex, EBNF", YES, YES, "served/test_structured_output"),
    Feature(
        "streamed tool calls in runs of tokens",
        "parts lost with some parsers",
        "as token by token",
        "serving/requests/test_streamed_tokens",
    ),
    Feature("logprobs, hidden states, streaming, usage", YES, YES, "served/test_outputs"),
    Feature("overlap scheduling, chunked prefill, prefix cache", YES, YES, "served/test_equality"),
    Feature("mixed chunks", YES, YES, "served/test_rejection"),
    Feature("`--speculative-use-rejection-sampling`", YES, YES, "served/test_sampling"),
    Feature("`--speculative-use-block-verification`", YES, YES, "served/test_sampling"),
    Feature("draft trees", YES, YES, "served/test_tree"),
    Feature(
        "draft vocabularies",
        "one list for all (EAGLE3, token map)",
        "one for each request's language",
        "served/test_routing",
    ),
    Feature(
        "`--speculative-adaptive`",
        "chains, by a table of batch sizes (`--speculative-adaptive-config`)",
        "chains and trees, measured, down to no drafts; within such a table if there is one",
        "served/test_adaptive",
    ),
    Feature("`--tokenizer-worker-num` above 1", YES, YES, "served/test_tokenizer_workers"),
    Feature(
        "LoRA adapters on the target (--enable-lora)",
        YES,
        YES,
        "served/test_lora",
    ),
    Feature("tensor parallelism", YES, YES, "served/test_tensor_parallel"),
    Feature(
        "pipeline parallelism (`SGLANG_ENABLE_PP_SPEC=1`)",
        "yes; seeds ignored",
        "yes; seeds as on one stage",
        "served/test_pipeline",
    ),
    Feature("weights updated while serving", YES, YES, "served/test_weight_updates"),
    Feature("prefill/decode disaggregation", YES, YES, "served/test_disaggregation"),
    Feature("DP attention", YES, YES, "served/test_attention_ranks"),
)


def path_of(shown_by: str) -> str:
    """The test's file under the root of the repository, or the reason why there is none."""
    return f"tests/{shown_by}.py" if "/" in shown_by else shown_by
