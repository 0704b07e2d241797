"""Each verified row of a tree is processed with the tokens and parameters of its own path.

Alone: pytest tests/serving/verification/test_logit_processors.py
"""

import weakref
from array import array
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.sampling.sampling_batch_info import ProcessorEntry

from fastmtp_sglang.serving.verification.logit_processors import LogitProcessors, RequestView

VOCAB = 50
# Rows 1 and 2 follow the root, 3 follows 2, 4 follows 3.
NEXT_TOKEN = torch.tensor([[1, -1, 3, 4, -1]])
NEXT_SIBLING = torch.tensor([[-1, 2, -1, -1, -1]])
DRAFTS = torch.tensor([[7, 10, 20, 30, 40]])


class Request:
    """What is read of SGLang's."""

    def __init__(self, params: dict | None, output_ids: list[int], rid: str = "r") -> None:
        self.rid = rid
        self.custom_logit_processor = "a processor"
        self.output_ids = array("q", output_ids)
        if params is not None:
            params = {**params, "__req__": weakref.proxy(self)}
        self.sampling_params = SimpleNamespace(custom_params=params)


class Recording:
    """Bars what has come, and counts its calls in the parameters."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[int], int]] = []

    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict]) -> torch.Tensor:
        for row, params in zip(logits, custom_param_list, strict=True):
            params["calls"] = params.get("calls", 0) + 1
            request = params["__req__"]
            self.seen.append((request.rid, list(request.output_ids), params["calls"]))
            row[list(request.output_ids)] = -torch.inf
        return logits


def info(processor, rows: list[int]) -> SimpleNamespace:
    entry = ProcessorEntry(processor, rows, torch.tensor(rows))
    return SimpleNamespace(custom_logit_processor={1: entry})


def tree(count: int) -> tuple[torch.Tensor, ...]:
    return tuple(x.expand(count, -1) for x in (DRAFTS, NEXT_TOKEN, NEXT_SIBLING))


@pytest.fixture
def request_with_one():
    return Request({"budget": [3]}, [])


def test_the_tokens_and_parameters_of_a_path(request_with_one):
    processors, recording = LogitProcessors(), Recording()
    other = SimpleNamespace(custom_logit_processor=None)
    requests = [other, request_with_one]
    processors.start(requests)
    params = request_with_one.sampling_params.custom_params
    assert list(params["__req__"].output_ids) == []
    assert params["__req__"].rid == "r"
    params["calls"] = 1  # by SGLang's sampler, of the first token
    processors.after_prefill(requests, torch.tensor([3, 7]))

    logits = torch.zeros(2, 5, VOCAB)
    states = processors.apply(requests, info(recording, [1]), logits, *tree(2))
    paths = [[7], [7, 10], [7, 20], [7, 20, 30], [7, 20, 30, 40]]
    assert recording.seen == [("r", path, len(path) + 1) for path in paths]
    barred = [row.isinf().nonzero().flatten().tolist() for row in logits[1]]
    assert barred == [sorted(path) for path in paths]
    assert not logits[0].any()

    # Drafts 20 and 30 are accepted, and 44 follows.
    predict = torch.zeros(10, dtype=torch.int32)
    predict[[5, 7, 8]] = torch.tensor([20, 30, 44], dtype=torch.int32)
    accept_index = torch.tensor([[0, -1, -1, -1], [5, 7, 8, -1]], dtype=torch.int32)
    processors.after_verification(requests, predict, torch.tensor([1, 3]), accept_index, states)
    recording.seen.clear()
    processors.apply(requests, info(recording, [1]), logits, *tree(2))
    assert recording.seen[0] == ("r", [7, 20, 30, 44], 5)
    assert params["calls"] == 4
    assert params["budget"] == [3]


def test_a_request_that_comes_back_or_from_elsewhere(request_with_one):
    processors, recording = LogitProcessors(), Recording()
    processors.start([request_with_one])
    request_with_one.output_ids.extend([5, 6])  # retracted after two tokens
    processors.start([request_with_one])
    processors.after_prefill([request_with_one], torch.tensor([7]))
    elsewhere = Request({}, [9, 7], "prefilled by another server")
    requests = [request_with_one, elsewhere]
    processors.apply(requests, info(recording, [0, 1]), torch.zeros(2, 5, VOCAB), *tree(2))
    assert [seen[1] for seen in recording.seen[:2]] == [[5, 6, 7], [9, 7]]
    request = request_with_one.sampling_params.custom_params["__req__"]
    assert not isinstance(request._request, RequestView)


def test_a_request_without_parameters():
    processors = LogitProcessors()
    request = Request(None, [])
    processors.start([request])
    processors.after_prefill([request], torch.tensor([7]))
    asked = []

    def forbid(logits, custom_param_list):
        asked.append(custom_param_list)
        return logits.index_fill(1, torch.tensor([4]), -torch.inf).bfloat16()

    logits = torch.zeros(1, 5, VOCAB)
    states = processors.apply([request], info(forbid, [0]), logits, *tree(1))
    assert asked == [[None]] * 5
    assert logits[..., 4].isinf().all()
    assert logits.isinf().sum() == 5
    predict, accept_index = torch.full((5,), 8), torch.tensor([[0, -1, -1, -1]])
    processors.after_verification([request], predict, torch.tensor([1]), accept_index, states)
    processors.start([])
