"""The FASTMTP worker: SGLang's V2 worker with one shared head, drafted recursively.

Overlap and synchronous scheduling, CUDA graphs, verification and the draft's KV cache are
SGLang's. What differs is the memory, since the head's embedding and lm_head are the target's
tensors from the moment the head is loaded, before the KV pool is sized; with a draft vocabulary,
the last layer (`draft_head`), which each request's language steers (`routing`); what verification
is given and leaves behind (`verification`); and the choice of what to draft (`adaptive`), down to
nothing at all (`deferred_keys`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.distributed import get_tp_group
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.platforms import current_platform
from sglang.srt.runtime_context import get_disagg, get_observability, get_parallel, get_spec
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative import eagle_worker_v2
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import disaggregation, weight_updates
from fastmtp_sglang.serving.adaptive.acceptance_watch import AcceptanceWatch
from fastmtp_sglang.serving.adaptive.adaptive_shapes import AdaptiveShapes
from fastmtp_sglang.serving.adaptive.candidate_steps import CandidateSteps
from fastmtp_sglang.serving.adaptive.clock import clock_of
from fastmtp_sglang.serving.adaptive.draft_record import DraftRecord
from fastmtp_sglang.serving.adaptive.shape_switch import ShapeSwitch, reserve_for_the_largest
from fastmtp_sglang.serving.adaptive.shapes import candidate_shapes
from fastmtp_sglang.serving.cpu.platform import FastMTPCpuPlatform
from fastmtp_sglang.serving.drafting.deferred_keys import DeferredKeys
from fastmtp_sglang.serving.drafting.draft_head import (
    DraftHead,
    NextTokenIds,
    path_probabilities,
)
from fastmtp_sglang.serving.drafting.head_model import FastMTPHead
from fastmtp_sglang.serving.drafting.lm_head_rows import LMHeadRows
from fastmtp_sglang.serving.drafting.masked_draft_head import MaskedDraftHead
from fastmtp_sglang.serving.requests.emitted_drafts import EmittedDrafts
from fastmtp_sglang.serving.routing.routing_log import RoutingLog
from fastmtp_sglang.serving.verification.verification import Verification
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from fastmtp_sglang.serving.cpu.lean_step import LeanStep

logger = logging.getLogger(__name__)


class FastMTPDraftWorker(EagleDraftWorker):
    """Drafts chains of K tokens, or trees of that depth, by applying one MTP head K times.

    Attributes:
        largest: the shape that the flags name; what is drafted may change, within it.
        draft_head: the last layer over per-request lists; None drafts from all tokens.
        record: what trees drafted, where shapes are chosen among.
        lean_step: how a CPU computes the steps of ordinary batches, where it can.
    """

    def __init__(
        self,
        server_args: ServerArgs,
        gpu_id: int,
        nccl_port: int,
        target_worker: TpModelWorker,
    ) -> None:
        spec = get_spec()
        self.topk: int  # SGLang's, of the shape in use
        self.largest = TreeShape(
            spec.speculative_num_steps,
            spec.speculative_eagle_topk,
            spec.speculative_num_draft_tokens,
        )
        self.draft_head: DraftHead | MaskedDraftHead | None = None
        self.record: DraftRecord | None = None
        self.lean_step: LeanStep | None = None
        self._deferred_keys: DeferredKeys | None = None
        super().__init__(server_args, gpu_id, nccl_port, target_worker)
        weight_updates.remember(target_worker.model_config)
        # Stock SGLang shares them after it has sized the KV pool, while the head still holds copies
        # (sglang#36452: 2.5 GB that a MiMo-7B server loses for good).
        before = _parameter_bytes(self.draft_runner.model)
        self.init_token_map()
        self.init_lm_head()
        freed = before - _parameter_bytes(self.draft_runner.model)
        current_platform.empty_cache()
        logger.info(
            "The head shares the target's embedding and lm_head (%.1f MiB of copies freed before "
            "the KV pool is sized); it drafts %s per step.",
            max(freed, 0) / 2**20,
            f"K={self.largest.num_steps} tokens"
            if self.topk == 1
            else f"a tree of {self.largest.num_rows} rows (K={self.largest.num_steps}, top-k "
            f"{self.topk})",
        )

    def _resolve_shared_embed_and_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's embedding and lm_head; on a later stage the head has the former itself."""
        model, target = self.draft_runner.model, self.target_worker.model_runner.model
        if isinstance(model, FastMTPHead):
            model.take_embedding(target, self.draft_runner.dtype, self.draft_runner.device)
        return super()._resolve_shared_embed_and_head()

    def init_token_map(self) -> None:
        """No hot-token copy of the lm_head: drafting reads the shared one."""
        self.hot_token_id: NextTokenIds | None = None

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        """Once request slots exist, put the draft vocabulary in place of the full one."""
        super().alloc_memory_pool(*args, **kwargs)
        if isinstance(current_platform, FastMTPCpuPlatform):
            current_platform.shorten_draft(self.draft_runner)
        num_slots = self.req_to_token_pool.req_to_token.shape[0]
        if get_spec().speculative_adaptive:
            reserve_for_the_largest()
            if DeferredKeys.possible(self.draft_runner):
                self._deferred_keys = DeferredKeys(self.draft_runner)
            if self.topk > 1:
                self.record = DraftRecord(self.largest, num_slots, self.draft_runner.device)
                # For good: its process serves nothing but our worker.
                eagle_worker_v2.organize_draft_results = self.record.keeping(
                    eagle_worker_v2.organize_draft_results
                )
        path = get_spec().speculative_token_map
        if path is None:
            logger.info(
                "Drafting over the full vocabulary: there is no --speculative-token-map, and no %s "
                "beside the head.",
                FILE_NAME,
            )
            return
        # The main process has compared its tokenizer with the target's.
        vocabulary = DraftVocabulary.load(
            path,
            vocab_size=self.target_worker.model_config.vocab_size,
            tokenizer_fingerprint=None,
        )
        model = self.draft_runner.model
        if not (hasattr(model, "lm_head") and hasattr(model, "logits_processor")):
            raise FastMTPError(
                f"--speculative-token-map {path} does not work with {type(model).__name__}, which "
                "computes its logits in its own way. Serve without it."
            )
        processor = model.logits_processor
        rows = LMHeadRows.for_drafts(model.lm_head, processor, self.draft_runner.dtype)
        if rows is None:
            device = self.draft_runner.device
            self.draft_head = MaskedDraftHead(vocabulary, processor, num_slots, device)
        else:
            self.draft_head = DraftHead(vocabulary, rows, processor, num_slots, self.topk)
            self.hot_token_id = NextTokenIds(self.draft_head)
            if self.topk > 1:
                eagle_worker_v2.renorm_draft_probs = path_probabilities
            self._watch_weight_updates(self.draft_head)
        self._routing_log = RoutingLog(
            self.draft_head.router,
            get_observability().decode_log_interval,
            with_metrics=get_observability().enable_metrics and get_parallel().tp_rank == 0,
        )
        own = vocabulary.own_tokens
        logger.info(
            "Drafting from %s by the language of each request: %s of %d tokens%s.",
            path,
            ", ".join(f"{name} {len(ids)}" for name, ids in vocabulary.ids.items()),
            vocabulary.vocab_size,
            f", and up to {own} of the request's own" if own else "",
        )

    def _watch_weight_updates(self, draft_head: DraftHead) -> None:
        """SGLang asks for the target's runners whenever it is about to change its weights."""
        stock = self.target_worker.weight_update_runners

        def weight_update_runners() -> list[tuple[str, ModelRunner]]:
            draft_head.is_stale = True
            return stock()

        self.target_worker.weight_update_runners = weight_update_runners

    def draft(self, batch: ScheduleBatch, **kwargs: Any) -> Any:
        """Draft upon the keys of all that was decided."""
        if self._deferred_keys is not None:
            self._deferred_keys.write()
        first = batch.spec_info
        if self.topk < self.largest.top_k:
            first.topk_p = first.topk_p[:, : self.topk]
            first.topk_index = first.topk_index[:, : self.topk]
        num_steps, lean_step = self.speculative_num_steps, self.lean_step_for(batch)
        if num_steps == 0 or lean_step is None or not lean_step.can_draft(num_steps):
            return super().draft(batch, **kwargs)
        if self.record is not None:
            self.record.slots = batch.req_pool_indices
        return lean_step.draft(
            batch, TreeShape(num_steps, self.topk, self.speculative_num_draft_tokens)
        )

    def lean_step_for(self, batch: ScheduleBatch) -> LeanStep | None:
        """The short way to a step, if there is one for this batch."""
        if self.lean_step is not None and self.lean_step.suits(batch):
            return self.lean_step
        return None

    def draft_forward(self, forward_batch: ForwardBatch) -> Any:
        """Draft; the first tokens come from the preceding draft extension."""
        if self.draft_head is not None:
            self.draft_head.batch = forward_batch
        if isinstance(self.draft_head, DraftHead):
            self.draft_head.slots = forward_batch.req_pool_indices
        if self.record is not None:
            self.record.slots = forward_batch.req_pool_indices
        return super().draft_forward(forward_batch)

    def _draft_extend_for_prefill(
        self,
        batch: ScheduleBatch,
        target_hidden_states: torch.Tensor,
        next_token_ids: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self._deferred_keys is not None:
            self._deferred_keys.write()
        if self.draft_head is not None and batch.reqs:
            slots = [request.kv.req_pool_idx for request in batch.reqs]
            # Behind a chunk the prompt goes on, and what the target says there is not the answer.
            ends = [request is not batch.chunked_req for request in batch.reqs]
            self.draft_head.router.start(slots, batch.reqs)
            self.draft_head.router.remember(slots, next_token_ids, ends)
            if isinstance(self.draft_head, DraftHead):
                self.draft_head.slots = batch.req_pool_indices
        with self._for_any_shape():
            drafted = super()._draft_extend_for_prefill(
                batch, target_hidden_states, next_token_ids, *args, **kwargs
            )
        disaggregation.name_drafts(drafted, self.hot_token_id)
        return drafted

    def _draft_extend_for_decode(
        self, batch: ScheduleBatch, batch_result: GenerationBatchResult, **kwargs: Any
    ) -> None:
        if self.draft_head is not None and not batch.forward_mode.is_idle():
            # The accepted path comes first; the deepest one has K drafts, whatever was verified.
            decided = batch_result.next_token_ids.view(len(batch.req_pool_indices), -1)
            self.draft_head.router.advance(
                batch.req_pool_indices,
                decided[:, : self.speculative_num_steps + 1],
                batch_result.accept_lens,
            )
            self._routing_log.step()
        lean_step = self.lean_step_for(batch)
        if self.speculative_num_steps == 0 and self._deferred_keys is not None:
            self._deferred_keys.owe(batch, batch_result)
        elif self.speculative_num_steps > 0 and lean_step is not None and lean_step.can_extend():
            lean_step.extend(batch, batch_result, self.largest.top_k)
        else:
            with self._scoring_only_for_drafts(), self._for_any_shape():
                super()._draft_extend_for_decode(batch, batch_result, **kwargs)
        if self.speculative_num_steps == 0:
            self._draft_nothing(batch.req_pool_indices, batch_result)

    def _draft_nothing(self, slots: torch.Tensor, result: GenerationBatchResult) -> None:
        """Let the first drafts after K = 0 be tokens 0, 1, ..., which verification rejects."""
        first, hidden_states = result.next_draft_input, result.logits_output.hidden_states
        # Of a tree they are siblings, and must differ.
        fillers = torch.arange(self.largest.top_k, device=slots.device)
        first.topk_index = fillers.repeat(len(hidden_states), 1)
        first.topk_p = torch.ones_like(first.topk_index, dtype=torch.float32)
        first.hidden_states = torch.zeros_like(hidden_states)
        if isinstance(self.draft_head, DraftHead):
            self.draft_head.next_ids[slots, 0] = fillers

    def _capture_cuda_graphs(self) -> None:
        with self._scoring_only_for_drafts():
            super()._capture_cuda_graphs()

    @contextmanager
    def _scoring_only_for_drafts(self) -> Iterator[None]:
        """At K = 0, spare a head whose keys cannot be deferred its last layer."""
        if self.speculative_num_steps > 0:
            yield
            return
        processor = self.draft_runner.model.logits_processor
        processor._get_logits = lambda hidden_states, *_, **__: hidden_states.new_zeros(
            len(hidden_states), self.largest.top_k, dtype=torch.float32
        )
        try:
            yield
        finally:
            del processor._get_logits

    @contextmanager
    def _for_any_shape(self) -> Iterator[None]:
        """Draft the first tokens of a step whose shape is chosen later: as many as any needs."""
        active, self.topk = self.topk, self.largest.top_k
        try:
            yield
        finally:
            self.topk = active


class FastMTPWorker(EAGLEWorkerV2):
    """The worker that SGLang's scheduler drives; of a pipeline, that of the last stage."""

    def __init__(self, **kwargs: Any) -> None:
        # The base class names its draft worker in a module global and has no factory for it.
        stock = eagle_worker_v2.EagleDraftWorker
        eagle_worker_v2.EagleDraftWorker = FastMTPDraftWorker
        try:
            super().__init__(**kwargs)
        finally:
            eagle_worker_v2.EagleDraftWorker = stock
        self._verification = Verification(
            self.target_worker.model_config.vocab_size, self.target_worker.device
        )
        self._verification.install()
        if get_disagg().disaggregation_mode == "decode":
            disaggregation.Arrivals(self._verification, self.draft_worker).install()
        self._adaptive: AdaptiveShapes | None = None
        self._watch: AcceptanceWatch | None = None
        if get_spec().speculative_adaptive:
            largest, table = self.draft_worker.largest, get_spec().speculative_adaptive_config
            steps = None if table is None else CandidateSteps.read(table, largest.num_steps)
            shapes = candidate_shapes(largest)
            self._adaptive = AdaptiveShapes(shapes, clock_of(get_tp_group()), steps)
            self.adaptive_controller = ShapeSwitch(self, self._adaptive)
            # It reports each switch, and a look at another shape is two.
            logging.getLogger(eagle_worker_v2.__name__).addFilter(_no_switches)
        elif get_parallel().tp_rank == 0:
            self._watch = AcceptanceWatch()
        EmittedDrafts(self._learn).install()

    def init_cuda_graphs(self) -> None:
        """Where all is in place, see what a CPU can do without SGLang's forward batches."""
        super().init_cuda_graphs()
        if isinstance(current_platform, FastMTPCpuPlatform):
            draft = self.draft_worker
            draft.lean_step = current_platform.lean_step(
                self.target_worker.model_runner, draft.draft_runner, draft.draft_head
            )
            if draft.lean_step is not None:
                logger.info("Ordinary batches are decoded by sweeps of recorded passes.")

    def verify(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> GenerationBatchResult:
        """Verify drafts; what trees drafted tells the policy about other shapes."""
        requests, slots = [request.rid for request in batch.reqs], batch.req_pool_indices
        lean_step = self.draft_worker.lean_step_for(batch)
        if lean_step is not None:
            result = lean_step.verify(batch)
        else:
            result = super().verify(batch, *args, **kwargs)
        if self._adaptive is not None and self.topk > 1:
            record, shape = self.draft_worker.record, self._adaptive.latest
            decided, lengths = result.next_token_ids, result.accept_lens
            self._adaptive.drafted(record.take(shape, requests, slots, decided, lengths))
        return result

    def _forward_prefill_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        if self._adaptive is not None:
            self._adaptive.disturb()
        self._verification.before_prefill(batch)
        result = super()._forward_prefill_batch(batch, *args, **kwargs)
        self._verification.after_prefill(batch, result.next_token_ids)
        return result

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        """Judge the head by a verification whose result has arrived."""
        if self._watch is not None:
            self._watch.observe(num_correct_drafts_per_req)

    def _learn(self, emitted_drafts: list[tuple[str, int]]) -> None:
        """Choose shapes by what clients get of the same verification, a little later."""
        if self._adaptive is not None:
            self._adaptive.learn(emitted_drafts)


def _no_switches(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Switch adaptive runtime state")


def _parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes that a model's parameters occupy, counting shared storage once."""
    storages = (p.untyped_storage() for p in model.parameters() if not p.is_meta)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
