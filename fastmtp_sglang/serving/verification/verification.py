"""Verification with what SGLang's own leaves out, so that answers are those of token-by-token
decoding: exact penalties (`penalties`), custom logit processors (`logit_processors`), the sampler's
distribution (`filters`), and seeds (`seeds`).

SGLang's verification looks its functions up as attributes of modules; `install` puts ours there, in
the scheduler process, once the CPU's torch operators are in place. Nothing of SGLang is copied:
ours adjust what goes in, and call SGLang's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.runtime_context import get_exec
from sglang.srt.sampling import penaltylib
from sglang.srt.speculative import eagle_utils, eagle_worker_common

from fastmtp_sglang.serving.verification.filters import Filters, target_distribution
from fastmtp_sglang.serving.verification.logit_processors import LogitProcessors
from fastmtp_sglang.serving.verification.penalties import (
    NoPenalizers,
    Paths,
    Penalties,
    PrefillPenalties,
)
from fastmtp_sglang.serving.verification.seeds import SeededRows, make_certain

if TYPE_CHECKING:
    from sglang.srt.constrained.base_grammar_backend import GrammarMask
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.speculative.eagle_info import EagleVerifyInput
    from torch import Tensor

# What `eagle_sample` hands the target's probabilities to.
_SAMPLERS = ("tree_speculative_sampling_target_only", "chain_speculative_sampling_triton")


class Verification:
    """Samples first tokens and verifies drafts.

    Attributes:
        penalties: what the requests that use penalties have produced.
        logit_processors: and those that bring a processor of logits.
    """

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self.penalties = Penalties(vocab_size, device)
        self.logit_processors = LogitProcessors()
        self._stock_sample = eagle_worker_common.eagle_sample
        self._filters: Filters | None = None
        self._seeded: SeededRows | None = None

    def install(self) -> None:
        """Take SGLang's place; for good, since its process serves nothing but our worker."""
        penaltylib.BatchedPenalizerOrchestrator = NoPenalizers
        eagle_worker_common.eagle_sample = self.sample
        for name in _SAMPLERS:
            setattr(eagle_utils, name, partial(self._verify, getattr(eagle_utils, name)))

    def start(self, requests: Sequence[Req]) -> None:
        """Take up requests whose `output_ids` are complete: nothing of theirs is in flight."""
        self.penalties.start(requests)
        self.logit_processors.start(requests)

    def before_prefill(self, batch: ScheduleBatch) -> None:
        """Prepare the sampling of a prefill's first tokens; after a retraction, of the next ones.

        A chunk that is not its prompt's last samples a token too, which nobody uses: the next chunk
        starts the count again.
        """
        decoding = {id(request) for request in batch.decoding_reqs or ()}
        self.start([r for r in batch.reqs if id(r) not in decoding])
        selection = self.penalties.select(batch.reqs)
        if selection is not None:
            # SGLang gives a forward pass its own copy, without an orchestrator.
            batch.sampling_info.penalizer_orchestrator = PrefillPenalties(self.penalties, selection)

    def after_prefill(self, batch: ScheduleBatch, tokens: Tensor | None) -> None:
        """Count the sampled tokens, integer [B]."""
        selection = self.penalties.select(batch.reqs)
        if selection is not None and tokens is not None:
            self.penalties.count(selection, tokens.unsqueeze(1), torch.ones_like(tokens))
        if tokens is not None:
            self.logit_processors.after_prefill(batch.reqs, tokens)

    def sample(
        self,
        verify_input: EagleVerifyInput,
        batch: ScheduleBatch,
        logits_output: LogitsProcessorOutput,
        grammar_mask: GrammarMask | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """SGLang's `eagle_sample` on adjusted logits.

        Returns:
            predict, int32 [B * n]: the tokens after the accepted rows; accept_lens, int [B]: how
            many these are; accept_index, int32 [B, K + 1]: which, and -1 beyond.
        """
        if batch.forward_mode.is_idle():
            return self._stock_sample(verify_input, batch, logits_output, *args, **kwargs)
        n = verify_input.draft_token_num
        selection = self.penalties.select(batch.reqs)
        if selection is not None:
            logits = logits_output.next_token_logits.unflatten(0, (-1, n))
            paths = Paths.of(
                verify_input.draft_token.view(-1, n),
                verify_input.retrieve_next_token,
                verify_input.retrieve_next_sibling,
                verify_input.spec_steps,
            )
            self.penalties.apply(selection, logits, paths)
        accept = self._accept
        if batch.sampling_info.has_custom_logit_processor:
            accept = self._process_and_accept
        predict, accept_lens, accept_index = accept(
            verify_input, batch, logits_output, grammar_mask, *args, **kwargs
        )
        if selection is not None:
            tokens = predict[accept_index.clamp(min=0).long()]
            self.penalties.count(selection, tokens, accept_lens)
        return predict, accept_lens, accept_index

    def _process_and_accept(
        self,
        verify_input: EagleVerifyInput,
        batch: ScheduleBatch,
        logits_output: LogitsProcessorOutput,
        grammar_mask: GrammarMask | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let processors see, and have the last word over, what SGLang does to the logits."""
        info, n = batch.sampling_info, verify_input.draft_token_num
        logits = logits_output.next_token_logits
        if info.logit_bias is not None:
            logits.add_(info.logit_bias.repeat_interleave(n, dim=0))
        if grammar_mask is not None:
            grammar_mask.apply(logits)
        states = self.logit_processors.apply(
            *(batch.reqs, info, logits.unflatten(0, (-1, n)), verify_input.draft_token.view(-1, n)),
            *(verify_input.retrieve_next_token, verify_input.retrieve_next_sibling),
        )
        batch.sampling_info = dataclasses.replace(info, logit_bias=None)
        try:
            accepted = self._accept(verify_input, batch, logits_output, None, *args, **kwargs)
        finally:
            batch.sampling_info = info
        self.logit_processors.after_verification(batch.reqs, *accepted, states)
        return accepted

    def _accept(
        self,
        verify_input: EagleVerifyInput,
        batch: ScheduleBatch,
        logits_output: LogitsProcessorOutput,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """SGLang's `eagle_sample`, with the sampler's filters and with seeds."""
        info, n = batch.sampling_info, verify_input.draft_token_num
        self._seeded = None
        if info.seeded:
            positions = verify_input.positions.view(-1, n)
            logits = logits_output.next_token_logits.unflatten(0, (-1, n))
            on_policy = get_exec().deterministic.rl_on_policy_target is not None
            self._seeded = SeededRows(info, positions, logits if on_policy else None)
        with self._own_filters(info, n):
            return self._stock_sample(verify_input, batch, logits_output, *args, **kwargs)

    @contextmanager
    def _own_filters(self, sampling_info: SamplingBatchInfo, n: int) -> Iterator[None]:
        """Filter in `_verify` what SGLang would have filtered before it calls that."""
        self._filters = Filters.of(sampling_info, n, get_exec().kernel.sampling_backend)
        needed = sampling_info.need_top_k_sampling, sampling_info.need_top_p_sampling
        if self._filters is not None:
            sampling_info.need_top_k_sampling = sampling_info.need_top_p_sampling = False
        try:
            yield
        finally:
            sampling_info.need_top_k_sampling, sampling_info.need_top_p_sampling = needed

    def _verify(self, sampler: Callable[..., None], *, target_probs: Tensor, **kwargs: Any) -> None:
        """Let SGLang's sampler accept tokens by filtered target probabilities [B, n, V]."""
        decided = []
        if self._seeded:
            # From what nothing has filtered yet: SGLang's seeded sampling has an order of its own.
            decided = self._seeded.tokens(
                target_probs,
                kwargs["candidates"],
                (kwargs["retrive_next_token"], kwargs["retrive_next_sibling"]),
                depth=kwargs["accept_index"].shape[1],
            )
        if self._filters is not None and not (self._seeded and self._seeded.info.all_seeded):
            target_probs = target_distribution(
                target_probs.flatten(0, 1),
                self._filters,
                eagle_utils.top_k_renorm_prob,
                eagle_utils.top_p_renorm_prob,
            ).view_as(target_probs)
        for requests, tokens in decided:
            make_certain(requests, tokens, target_probs, kwargs["uniform_samples"])
        sampler(target_probs=target_probs, **kwargs)
