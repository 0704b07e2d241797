"""The layers of a model without their Python: recorded once, then swept natively.

A decoding step of a small model spends as much time in its layers' Python as in its products. The
body of a model (embedding, layers, last norm) is therefore recorded as a tape the first time that
it runs in a mode of SGLang's, and later batches of any size sweep the tape. A body that does
anything besides the native operators (another attention, an adapter, a collective) is not
recordable and runs as before, as does a call with embeddings instead of ids.
"""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import torch
from sglang.srt.model_executor.forward_context import get_attn_backend

from fastmtp_sglang.serving.cpu import fused
from fastmtp_sglang.serving.cpu.attention import CpuAttnBackend
from fastmtp_sglang.serving.cpu.native.engine import engine
from fastmtp_sglang.serving.cpu.native.tape import NotRecordable, Recording, Tape
from fastmtp_sglang.serving.drafting.head_model import FastMTPHead

logger = logging.getLogger(__name__)

# Where a model's body keeps its tapes, by forward mode; None where there can be none.
_TAPES = "_fastmtp_tapes"


def install(model: torch.nn.Module) -> None:
    """Let the body of a causal language model, or all of a head but its last layer, be recorded."""
    owner, name = getattr(model, "model", None), "forward"
    if isinstance(model, FastMTPHead):
        # Its join is torch's elsewhere.
        model.join = fused.join
        owner, name = model, "states"
    if isinstance(owner, torch.nn.Module) and _TAPES not in owner.__dict__:
        owner.__dict__[_TAPES] = {}
        owner.__dict__[name] = functools.partial(_forward, owner, getattr(owner, name))


def forget(model: torch.nn.Module) -> None:
    """Drop the tapes of a model whose weights have moved."""
    for module in model.modules():
        if _TAPES in module.__dict__:
            module.__dict__[_TAPES].clear()


def tape(owner: torch.nn.Module, mode: Any) -> Tape | None:
    """What has been recorded of a model's body, or of a head, in a forward mode."""
    return owner.__dict__.get(_TAPES, {}).get(mode)


def _forward(
    owner: torch.nn.Module,
    stock: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """What `stock` computes: by a sweep of its tape where there is one.

    The first of `args` is a head's hidden states [rows, D]; a model's embeddings run as before.
    """

    def as_before() -> Any:
        return stock(input_ids, positions, forward_batch, *args, **kwargs)

    inputs = args[0] if args else None
    backend = get_attn_backend()
    possible = (
        (inputs is None) != isinstance(owner, FastMTPHead)
        and not any(argument is not None for argument in (*args[1:], *kwargs.values()))
        and type(backend) is CpuAttnBackend
        and len(backend.visible) == len(input_ids) > 0
        and positions.dim() == 1
        and not getattr(owner, "layers_to_capture", None)
    )
    if not possible:
        return as_before()
    given = [] if inputs is None else [inputs]
    of_rows = {
        "ids": input_ids.to(torch.int64),
        "positions": positions.to(torch.int64),
        "slots": forward_batch.out_cache_loc.to(torch.int64),
        "visible": backend.visible,
    }
    tapes = owner.__dict__[_TAPES]
    mode = forward_batch.forward_mode
    if mode not in tapes:
        tapes[mode] = _record(stock, backend, forward_batch, given, of_rows)
    recorded = tapes[mode]
    if recorded is None or any(x.stride(1) != 1 or x.stride(0) != x.shape[1] for x in given):
        return as_before()
    return recorded.sweep(len(input_ids), given, **of_rows)


def _record(
    stock: Any,
    backend: CpuAttnBackend,
    forward_batch: Any,
    given: list[torch.Tensor],
    of_rows: dict[str, torch.Tensor],
) -> Tape | None:
    if len(of_rows["ids"]) == 1:
        # Views of a single row do not tell how far apart rows lie: it is computed twice.
        given = [torch.cat((x, x)) for x in given]
        of_rows = {name: torch.cat((rows, rows)) for name, rows in of_rows.items()}
    batch = copy.copy(forward_batch)
    batch.out_cache_loc = of_rows["slots"]
    visible, backend.visible = backend.visible, of_rows["visible"]
    try:
        with Recording(engine(), given, **of_rows) as recording:
            output = stock(of_rows["ids"], of_rows["positions"], batch, *given)
        recorded = recording.tape(output)
    except NotRecordable as reason:
        logger.info("The model's layers run one by one: %s cannot be recorded.", reason)
        return None
    finally:
        backend.visible = visible
    logger.info("The model's layers are recorded: %d native operators.", len(recorded))
    return recorded
