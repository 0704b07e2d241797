"""Changing the shape between two steps: SGLang's switch of K, with top-k and rows beside it.

SGLang builds what depends on K (attention plans, CUDA graphs, buffers) once for each K, as a
`SpecRuntimeState`, and exchanges it between steps. Its `AdaptiveController` knows states by K, for
chains. Ours takes its place and knows them by shape. What top-k decides is decided where a state
is built (`speculative_eagle_topk` of the runtime context), and by `topk` of the two workers.

The worker sees to what crosses the border between two shapes: each step leaves the best tokens of
the largest top-k for the next one, which takes as many as it wants (`FastMTPDraftWorker`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from sglang.srt.mem_cache import allocation_sizing
from sglang.srt.runtime_context import get_context

from fastmtp_sglang.contract.tree_shape import TreeShape

if TYPE_CHECKING:
    from sglang.srt.speculative.adaptive_runtime_state import SpecRuntimeState
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

    from fastmtp_sglang.serving.adaptive.adaptive_shapes import AdaptiveShapes

# In the context's record of who changed what.
_SOURCE = "fastmtp.shape"


class ShapeSwitch:
    """What the worker has for an `AdaptiveController`."""

    def __init__(self, worker: EAGLEWorkerV2, policy: AdaptiveShapes) -> None:
        """Begin with the largest shape, for which the worker has been made."""
        self._worker = worker
        self._policy = policy
        self._active = policy.shapes[-1]
        self._states: dict[TreeShape, SpecRuntimeState] = {}

    def register(self, state: SpecRuntimeState) -> None:
        """Take what the worker began with."""
        self._states[self._active] = state

    def init_states(self, cuda_graph_bs: list[int] | None = None) -> None:
        """Build what the other shapes need; the largest one stays in use.

        Args:
            cuda_graph_bs: batch sizes to capture CUDA graphs of, None for no graphs.
        """
        for shape in self._policy.shapes:
            if shape not in self._states:
                self._become(shape)
                self._states[shape] = self._worker.build_adaptive_runtime_state(
                    speculative_num_steps=shape.num_steps,
                    speculative_num_draft_tokens=shape.num_rows,
                    cuda_graph_bs=cuda_graph_bs,
                )
        self._become(self._active)
        self._worker.draft_worker._rebuild_topk1_chain_buffers()

    def activate_step_by_batch(self, batch_size: int) -> None:
        """Use the shape that the policy chooses for the step that begins."""
        shape = self._policy.shape_for_batch(batch_size)
        if shape == self._active:
            return
        self._active = shape
        self._become(shape)
        # For the same K SGLang would leave the old state in place.
        self._worker.speculative_num_steps = -1
        self._worker.apply_runtime_state(self._states[shape])

    def _become(self, shape: TreeShape) -> None:
        """Put a shape wherever the workers and what is built for them look it up."""
        for owner in (self._worker, self._worker.draft_worker):
            owner.topk = shape.top_k
            owner.speculative_num_steps = shape.num_steps
            owner.speculative_num_draft_tokens = shape.num_rows
        get_context().override(
            _SOURCE,
            speculative_eagle_topk=shape.top_k,
            speculative_num_steps=shape.num_steps,
            speculative_num_draft_tokens=shape.num_rows,
        )


def reserve_for_the_largest() -> None:
    """Let each step be given cache slots for the largest shape, which is in use now.

    SGLang allocates them by the shape of the step before, and the next one may be larger.
    """
    stock = allocation_sizing.get_alloc_len_per_decode
    largest = stock()
    allocation_sizing.get_alloc_len_per_decode = functools.wraps(stock)(lambda: largest)
