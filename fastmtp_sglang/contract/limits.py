"""What FASTMTP and its CPU platform refuse: tables for refusals at start-up and the support matrix.

An argument that would be ignored, would change the output, or waits for a later release is refused
with its name, its value, the reason and the way out. Nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastmtp_sglang.contract.tree_shape import MAX_ROWS, TreeShape
from fastmtp_sglang.errors import FastMTPError

# The paper's K (arXiv 2509.18362, section 4.1).
DEFAULT_NUM_STEPS = 3
# SGLang's default --lora-backend, of GPUs, and what the CPU platform takes it for: its own goes by
# that name.
GPU_LORA_BACKEND, CPU_LORA_BACKEND = "csgmv", "torch_native"


@dataclass(frozen=True)
class Limit:
    """One argument that is not taken as given.

    Attributes:
        field: the field of SGLang's ServerArgs; the flag is derived from it.
        reason: why, as the second half of a sentence.
        remedy: what to do instead, as an imperative sentence.
        eagle: what SGLang does with it under its own EAGLE.
        refused: whether a value is refused; without it, any that is not SGLang's default.
    """

    field: str
    reason: str
    remedy: str
    eagle: str
    refused: Callable[[Any], bool] | None = None

    def applies(self, value: Any) -> bool:
        """Whether this value of the argument is refused."""
        if self.refused is not None:
            return self.refused(value)
        return value is not None and value != _defaults()[self.field]

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return flag_of(self.field)


def flag_of(field: str) -> str:
    """The command-line flag of a field of SGLang's ServerArgs."""
    return "--" + field.replace("_", "-")


@cache
def _defaults() -> dict[str, Any]:
    import msgspec
    from sglang.srt.server_args import ServerArgs

    return {field.name: field.default for field in msgspec.structs.fields(ServerArgs)}


def _other_algorithm(field: str, algorithm: str) -> Limit:
    return Limit(
        field,
        f"is an argument of {algorithm} and would be ignored by FASTMTP",
        f"Remove it, or use --speculative-algorithm {algorithm.lower()}.",
        "ignores it",
    )


_LOSSY = "would accept tokens that the model would not have produced"

LIMITS: tuple[Limit, ...] = (
    Limit("speculative_accept_threshold_single", _LOSSY, "Remove it.", "accepts them"),
    Limit("speculative_accept_threshold_acc", _LOSSY, "Remove it.", "accepts them"),
    Limit(
        "enable_multi_layer_eagle",
        "drafts with one layer per step; FASTMTP applies one layer recursively",
        "Remove it, or use --speculative-algorithm eagle.",
        "takes it where the model has several MTP layers",
    ),
    Limit(
        "is_embedding",
        "makes a server that generates no tokens: there is nothing to draft",
        "Serve embeddings without --speculative-algorithm.",
        "does not check it",
    ),
    *(
        _other_algorithm(field, algorithm)
        for algorithm, fields in {
            "DFLASH": ("speculative_dflash_block_size", "speculative_domino_candidate_pool_size"),
            "DSPARK": (
                "speculative_dspark_block_size",
                "speculative_dspark_sps_table_path",
                "speculative_dspark_confidence_sts_path",
                "speculative_dspark_align_verify_tokens_to_graph_tier",
            ),
            "NGRAM": (
                "speculative_ngram_min_bfs_breadth",
                "speculative_ngram_max_bfs_breadth",
                "speculative_ngram_match_type",
                "speculative_ngram_max_trie_depth",
                "speculative_ngram_capacity",
                "speculative_ngram_external_corpus_path",
                "speculative_ngram_external_sam_budget",
                "speculative_ngram_external_corpus_max_tokens",
            ),
            "UNO": ("uno_lora_path",),
        }.items()
        for field in fields
    ),
)


# What the CPU platform refuses, with and without speculation.
ON_A_CPU: tuple[Limit, ...] = (
    Limit(
        "rl_on_policy_target",
        "reproduces the bits of a trainer's GPU kernels, which the CPU platform of fastmtp-sglang "
        "does not",
        "Remove it; --enable-deterministic-inference repeats answers without.",
        "the same",
    ),
    Limit(
        "lora_backend",
        "has kernels of a GPU only, and the CPU platform of fastmtp-sglang brings one backend",
        "Remove it.",
        "the same",
        refused=lambda backend: backend not in (GPU_LORA_BACKEND, CPU_LORA_BACKEND),
    ),
    Limit(
        "enable_lora_overlap_loading",
        "copies adapters in a stream of a GPU, and on the CPU platform of fastmtp-sglang there is "
        "none",
        "Remove it; an adapter is loaded before the batch that wears it.",
        "the same",
    ),
    Limit(
        "enable_hierarchical_cache",
        "copies the KV cache between GPU and host memory, and on the CPU platform of "
        "fastmtp-sglang there is only the one",
        "Remove it; --max-total-tokens is the size of the KV cache.",
        "the same",
    ),
)


# What SGLang refuses for its own EAGLE: backends that verify chains only, and those that do trees
# over pages of more than one slot.
_CHAIN_BACKENDS = ("trtllm_mha",)
_TREE_BACKENDS_WITH_PAGES = ("flashinfer", "fa3", "triton")

# Where drafts are drawn from the head's distribution.
_DRAWN = ("speculative_use_rejection_sampling", "speculative_use_block_verification")

# What --speculative-adaptive does not go with: attention ranks of other batches would choose other
# shapes (SGLang's own policy refuses these too), the stages of a pipeline all take the rows that
# the flags name, the switch would lose what these wrap around SGLang's attention, or (drawn drafts)
# a step after K = 0 has no distribution that its first draft was drawn from.
NOT_ADAPTIVE = (
    ("enable_dp_attention", False),
    ("attn_dp_size", 1),
    ("pp_size", 1),
    ("enable_two_batch_overlap", False),
    ("enable_pdmux", False),
    *((field, False) for field in _DRAWN),
)


def refusals(server_args: Any, limits: Iterable[Limit]) -> list[str]:
    """What a table says to SGLang's arguments: flag, value, reason and remedy of each refused one.

    Args:
        server_args: SGLang's ServerArgs, or a view of them.
        limits: the table.
    """
    given = ((limit, getattr(server_args, limit.field)) for limit in limits)
    return [f"{x.flag} {value} {x.reason}. {x.remedy}" for x, value in given if x.applies(value)]


def refuse_any(server_args: Any, limits: Iterable[Limit]) -> None:
    """Check SGLang's arguments against a table.

    Raises:
        FastMTPError: for the first argument that is refused.
    """
    for message in refusals(server_args, limits):
        raise FastMTPError(message)


def refuse(server_args: Any) -> None:
    """Check SGLang's arguments against `LIMITS`, and what depends on two of them.

    Args:
        server_args: SGLang's ServerArgs, or a view of them.

    Raises:
        FastMTPError: for the first argument that is refused.
    """
    from sglang.srt.environ import envs

    refuse_any(server_args, LIMITS)
    if server_args.speculative_adaptive:
        for field, alone in NOT_ADAPTIVE:
            if (value := getattr(server_args, field)) not in (None, alone):
                raise FastMTPError(
                    f"--speculative-adaptive does not work with {flag_of(field)} {value} yet. "
                    "Remove one of the two."
                )
    elif server_args.speculative_adaptive_config is not None:
        raise FastMTPError(
            f"--speculative-adaptive-config {server_args.speculative_adaptive_config} says what "
            "--speculative-adaptive chooses among. Add that, or remove it."
        )
    if server_args.pp_size > 1:
        if not envs.SGLANG_ENABLE_PP_SPEC.get():
            raise FastMTPError(
                f"--pp-size {server_args.pp_size} needs the environment variable "
                "SGLANG_ENABLE_PP_SPEC=1, SGLang's switch for pipelines that draft. Set it, or use "
                "tensor parallelism (--tp-size)."
            )
        if server_args.disaggregation_mode != "null":
            raise FastMTPError(
                f"--pp-size {server_args.pp_size} does not work with --disaggregation-mode "
                f"{server_args.disaggregation_mode} yet. Remove one of the two."
            )
    drafted = shape(server_args)
    for field in _DRAWN:
        if drafted.top_k > 1 and getattr(server_args, field):
            raise FastMTPError(
                f"--speculative-eagle-topk {drafted.top_k} does not work with {flag_of(field)}: "
                "that draws one draft after the other, and the branches of a tree are not drawn. "
                "Remove one of the two; without it, a sampled token is accepted with the target's "
                "probability."
            )


def shape(server_args: Any) -> TreeShape:
    """What is drafted: SGLang's three arguments, or the defaults where they are not given.

    Raises:
        FastMTPError: they do not fit together.
    """
    steps, top_k = server_args.speculative_num_steps, server_args.speculative_eagle_topk
    return TreeShape.of(
        DEFAULT_NUM_STEPS if steps is None else steps,
        1 if top_k is None else top_k,
        server_args.speculative_num_draft_tokens,
    )


def refuse_attention(server_args: Any, drafted: TreeShape) -> None:
    """Refuse trees where SGLang's attention backend knows chains only.

    Args:
        server_args: a view of SGLang's ServerArgs, resolved.
        drafted: the shape.

    Raises:
        FastMTPError: naming the backend and those that know trees.
    """
    backend = server_args.attention_backend
    knows_chains = backend in _CHAIN_BACKENDS
    if server_args.page_size > 1:
        knows_chains |= server_args.device != "cpu" and backend not in _TREE_BACKENDS_WITH_PAGES
    if drafted.top_k > 1 and knows_chains:
        raise FastMTPError(
            f"--speculative-eagle-topk {drafted.top_k} does not work with --attention-backend "
            f"{backend} and --page-size {server_args.page_size}, which verifies chains only. Give "
            f"--attention-backend {' or '.join(_TREE_BACKENDS_WITH_PAGES)}, or no tree."
        )


def refuse_on_a_cpu(server_args: Any) -> None:
    """Check SGLang's arguments against `ON_A_CPU`, and the shape of a tree.

    Raises:
        FastMTPError: for the first argument that is refused.
    """
    refuse_any(server_args, ON_A_CPU)
    steps, top_k = server_args.speculative_num_steps or 0, server_args.speculative_eagle_topk or 1
    if top_k > 1 and steps * top_k > MAX_ROWS:
        raise FastMTPError(
            f"--speculative-eagle-topk {top_k} with --speculative-num-steps {steps} drafts into "
            f"{steps * top_k} cache slots, more than the {MAX_ROWS} that attention on the CPU "
            "platform of fastmtp-sglang tells apart. Give smaller ones."
        )
