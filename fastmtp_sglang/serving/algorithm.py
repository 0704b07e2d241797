"""FASTMTP as SGLang sees it: which branches it joins and how its arguments are resolved.

`FastMTPAlgorithm` answers as a member of the EAGLE family (one draft model with its own KV cache,
hidden states relayed from step to step) and supplies what SGLang's base class for plugins lacks.
SGLang calls it in the main process before any weight is read: `hold_back` and `refuse_unsupported`
with the arguments as given, `handle_server_args` with the resolved ones.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from fastmtp_sglang.contract import identity, limits
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import eagle_checks
from fastmtp_sglang.serving.adaptive.candidate_steps import CandidateSteps
from fastmtp_sglang.serving.requests import guards, http_app
from fastmtp_sglang.serving.verification import stops

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.overlap_utils import FutureMap
    from sglang.srt.managers.schedule_batch import ScheduleBatch

logger = logging.getLogger(__name__)

# SGLang's default for the EAGLE family: each running request reserves slots for its drafts.
DEFAULT_MAX_RUNNING_REQUESTS = 48
# For which SGLang ends the start unless the algorithm's name is one of its own.
_CHECKED_BY_NAME = (
    "speculative_use_block_verification",
    "disaggregation_decode_enable_radix_cache",
)


class FastMTPAlgorithm(CustomSpecAlgo):
    """The registered algorithm; SGLang looks it up by name wherever it asks about speculation."""

    _adaptive = False
    _held_back: ClassVar[tuple[str, ...]] = ()

    def is_eagle(self) -> bool:
        """Join the EAGLE family: draft model, draft KV cache, hidden states, verification."""
        return True

    def supports_mixed_chunk(self) -> bool:
        """Prefill chunks may share a batch with decoding requests."""
        return True

    def supports_grammar_overlap(self) -> bool:
        """The inherited verification advances grammars itself."""
        return True

    def need_topk(self) -> bool:
        """The first draft token is relayed from one iteration to the next."""
        return True

    def carries_draft_hidden_states(self) -> bool:
        """So is the hidden state that the next draft starts from."""
        return True

    def get_platform_worker_cls(self) -> type | None:
        """A platform cannot replace our worker."""
        return None

    def create_future_map(
        self,
        device: torch.device,
        req_to_token_pool: Any,
        needs_cpu_seq_lens: bool = True,
        needs_confidence_relay: bool = False,
    ) -> FutureMap:
        """Buffers that relay draft state between overlapped iterations.

        Each scheduler asks for them, those of a pipeline's first stages too, which have no worker.
        """
        install_in_scheduler()
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(
            device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay
        )

    def build_disagg_draft_input(
        self, batch: ScheduleBatch, last_tokens_tensor: torch.Tensor, future_map: FutureMap
    ) -> Any:
        """Draft state of requests that another node prefilled."""
        from fastmtp_sglang.serving import disaggregation

        return disaggregation.draft_input(batch, last_tokens_tensor, future_map)

    @staticmethod
    def hold_back(server_args: Any) -> None:
        """Before SGLang looks at speculation: spare our flags a check of names.

        Args:
            server_args: SGLang's ServerArgs themselves.
        """
        from sglang.srt.arg_groups.model_override_base import resolving_view
        from sglang.srt.arg_groups.overrides import declare_resolution

        given = resolving_view(server_args)
        if not identity.is_ours(given.speculative_algorithm):
            return
        held_back = tuple(field for field in _CHECKED_BY_NAME if getattr(given, field))
        FastMTPAlgorithm._held_back = held_back
        if held_back:
            declare_resolution(server_args, "fastmtp", **dict.fromkeys(held_back, False))

    @staticmethod
    def refuse_unsupported(server_args: Any) -> None:
        """Refuse arguments that would be ignored or change the output.

        Raises:
            FastMTPError: with the flag, its value, the reason and the remedy.
        """
        identity.announce()
        for field in FastMTPAlgorithm._held_back:
            setattr(server_args, field, True)
        limits.refuse(server_args)
        eagle_checks.install_for_adapters()
        if server_args.speculative_use_block_verification:
            # As SGLang does for its own: it needs drafts that are drawn.
            server_args.speculative_use_rejection_sampling = True
        # Between this and `handle_server_args` SGLang takes the flag away from all but its own
        # algorithms, with a warning that would be wrong here.
        FastMTPAlgorithm._adaptive = server_args.speculative_adaptive
        if server_args.speculative_adaptive:
            server_args.speculative_adaptive = False

    def handle_server_args(self, server_args: Any) -> None:
        """Fill in our defaults and check that draft and target fit together.

        Raises:
            FastMTPError: the draft cannot draft for this target.
        """
        if FastMTPAlgorithm._adaptive:
            server_args.speculative_adaptive = True
        # SGLang sizes buffers and context budgets from all three.
        shape = limits.shape(server_args)
        server_args.speculative_num_steps = shape.num_steps
        server_args.speculative_eagle_topk = shape.top_k
        server_args.speculative_num_draft_tokens = shape.num_rows
        limits.refuse_attention(server_args, shape)
        if server_args.speculative_adaptive_config is not None:
            CandidateSteps.read(server_args.speculative_adaptive_config, shape.num_steps)
        if server_args.max_running_requests is None:
            server_args.max_running_requests = DEFAULT_MAX_RUNNING_REQUESTS
            logger.info(
                "--max-running-requests %d: the default with speculation, set it to change it",
                DEFAULT_MAX_RUNNING_REQUESTS,
            )
        self._resolve_draft(server_args)
        http_app.prepare(server_args.tokenizer_worker_num)
        http_app.install(server_args)

    @staticmethod
    def _resolve_draft(server_args: Any) -> None:
        from sglang.srt.arg_groups.model_override_base import model_config_of
        from sglang.srt.utils.hf_transformers_utils import get_config

        from fastmtp_sglang.head import compatibility

        target = model_config_of(server_args).hf_config
        draft_path, draft = server_args.speculative_draft_model_path, target
        if draft_path is None:
            if not compatibility.has_native_head(target):
                raise FastMTPError(
                    f"--speculative-draft-model-path is missing and {server_args.model_path} "
                    f"({target.architectures[0]}) has no MTP layer of its own. Give the directory "
                    "of a FastMTP head; `fastmtp head init` makes an untrained one."
                )
            # SGLang budgets the draft's KV cache from this path, so it is set even where the
            # draft's weights lie in the target's own files.
            draft_path = server_args.model_path
            server_args.speculative_draft_model_path = draft_path
            server_args.speculative_draft_model_revision = server_args.revision
        else:
            draft = get_config(
                draft_path,
                trust_remote_code=server_args.trust_remote_code,
                revision=server_args.speculative_draft_model_revision,
            )
        compatibility.check(server_args.model_path, target, draft_path, draft)
        FastMTPAlgorithm._resolve_vocabulary(server_args, draft_path, target)

    @staticmethod
    def _resolve_vocabulary(server_args: Any, draft_path: str, target: Any) -> None:
        from sglang.srt.utils.hf_transformers_utils import get_tokenizer

        from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
        from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary

        path = server_args.speculative_token_map
        if path is None:
            beside_head = Path(draft_path) / FILE_NAME
            if not beside_head.is_file():
                return
            path = server_args.speculative_token_map = str(beside_head)
        tokenizer = get_tokenizer(
            server_args.tokenizer_path or server_args.model_path,
            tokenizer_mode=server_args.tokenizer_mode,
            trust_remote_code=server_args.trust_remote_code,
            tokenizer_revision=server_args.revision,
        )
        DraftVocabulary.load(
            path,
            vocab_size=target.get_text_config().vocab_size,
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        )


@cache
def install_in_scheduler() -> None:
    """Let this process follow what is served: stop rules, seeds, odd requests; once, and first.

    What the worker puts in place wraps some of it.
    """
    from sglang.srt.platforms import current_platform

    from fastmtp_sglang.serving.verification import seeds

    stops.install()
    seeds.install()
    on_a_cpu = current_platform.is_out_of_tree() and current_platform.device_type == "cpu"
    guards.install_in_scheduler(on_a_cpu=on_a_cpu)
    if on_a_cpu:
        from fastmtp_sglang.serving.cpu import ops

        ops.install()


def worker_class(server_args: Any) -> type:
    """The worker factory: called once, in the scheduler process, before the draft is built."""
    from sglang.srt.models.registry import ModelRegistry

    from fastmtp_sglang.head.config import ARCHITECTURE
    from fastmtp_sglang.serving.drafting import draft_room
    from fastmtp_sglang.serving.drafting.head_model import FastMTPHead
    from fastmtp_sglang.serving.drafting.native_head import MiMoMTP
    from fastmtp_sglang.serving.worker import FastMTPWorker

    identity.announce()
    install_in_scheduler()
    draft_room.install()
    ModelRegistry.models[ARCHITECTURE] = FastMTPHead
    ModelRegistry.models["MiMoMTP"] = MiMoMTP
    return FastMTPWorker
