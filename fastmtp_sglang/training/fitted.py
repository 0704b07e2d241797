"""Where a head from scratch should start: its copied layer reads what the last layer reads.

The block is a copy of the target's last layer. At the token at t + 1 the target gives that layer
the residual stream of all layers before it; a head has the target's state at t and the token. The
linear map from these two to that stream is found by least squares: sums of products over some
50,000 tokens, and one system of equations. The copied layer then gets what it was trained for, at
its scale, and makes of it what the target does.

The scale matters: SmolLM2's last layer reads a stream of RMS 39, Gemma 3 270M's one of 1,100 to
1,450. Of `init_head`'s, which is about 1, nothing is left behind what the layer adds.

SmolLM2, 40,500 tokens: KL to the target 3.2, and 27 % of its next tokens foretold; 38.7 and 0 %
without the fit. Its state in place of the stream, with a block that adds nothing: 3.5 and 28 %, and
from there a step of training must be small not to undo it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fastmtp_sglang.training.model import ChainHead
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.training.target import FrozenTarget

# Forty times as many as the map has inputs, for a width of 640.
_TOKENS = 50_000
# Documents that the target reads together.
_AT_ONCE = 16
# Added to the mean square of the inputs.
_RIDGE = 1e-3


@torch.no_grad()
def fit(head: ChainHead, documents: Sequence[Document], target: FrozenTarget) -> int:
    """Set `input_proj` by least squares.

    Args:
        head: from `init_head`; all else of it stays as it is.
        documents: some are read, spread over all; the target computes their states.
        target: whose last layer the block is a copy of.

    Returns:
        How many tokens were read.
    """
    width = head.config.hidden_size
    squares = torch.zeros(2 * width, 2 * width, dtype=torch.float64)
    products = torch.zeros(2 * width, width, dtype=torch.float64)
    read = 0
    for group in _groups(documents):
        if read >= _TOKENS:
            break
        ids = torch.cat([document.input_ids for document in group]).to(target.device)
        lengths = [len(document.input_ids) for document in group]
        states, streams = target.packed_streams(ids, lengths)
        for tokens, state, stream in zip(
            *(x.split(lengths) for x in (ids, states.float(), streams)), strict=True
        ):
            # The first state, of a token without a past, is unlike all others.
            before = (
                head.hidden_layernorm(state[1:-1]),
                head.token_layernorm(target.embed(tokens[2:])),
            )
            inputs, wanted = torch.cat(before, dim=1).double().cpu(), stream[2:].double().cpu()
            squares += inputs.T @ inputs
            products += inputs.T @ wanted
            read += len(inputs)
    squares.diagonal().add_(_RIDGE * squares.diagonal().mean())
    head.input_proj.weight.copy_(torch.linalg.solve(squares, products).T)
    return read


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """All documents, some at a time, in an order that meets every part early: it may follow their
    sources.
    """
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
    for first in range(0, len(order), _AT_ONCE):
        yield [documents[index] for index in order[first : first + _AT_ONCE]]
