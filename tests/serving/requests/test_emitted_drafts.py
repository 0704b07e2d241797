"""Drafts behind the end of an answer are not counted, whatever ends it.

Every draft is right here, so that runs are as long as they can be.
Alone: pytest tests/serving/requests/test_emitted_drafts.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.managers.scheduler_components.metrics_reporter import SchedulerMetricsReporter
from sglang.srt.sampling.sampling_params import SamplingParams

from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.serving.requests.emitted_drafts import EmittedDrafts
from fastmtp_sglang.serving.verification import stops

EOS = 2
TEXT = "One two three four five six seven eight nine ten eleven twelve"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
    made.additional_stop_token_ids = None  # what SGLang's loader adds
    return made


@pytest.fixture
def steps(monkeypatch) -> list[list[int]]:
    """The hooks installed; what they say of each decoding step."""
    for name in ("update_finish_state", "update_spec_correct_drafts_histogram"):
        monkeypatch.setattr(Req, name, getattr(Req, name))
    monkeypatch.setattr(
        SchedulerMetricsReporter,
        "report_decode_stats",
        lambda reporter, can_run_cuda_graph, running_batch=None, num_generated_tokens=0: (
            reporter.reported.append(num_generated_tokens)
        ),
    )
    seen: list[list[int]] = []
    stops.install()
    EmittedDrafts(lambda of_step: seen.append([count for _, count in of_step])).install()
    return seen


class Scheduler:
    """Does with a verification's result what SGLang's scheduler does, in its order."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.reporter = SimpleNamespace(
            num_generated_tokens=0,
            spec_num_accept_tokens=0,
            spec_num_correct_drafts=0,
            spec_num_forward_ct=0,
            reported=[],
        )

    def request(self, first_token, **sampling):
        params = SamplingParams(temperature=0, **{"max_new_tokens": 1000, **sampling})
        params.normalize(self.tokenizer)
        request = Req("r", "", [1, 2, 3], params, vocab_size=49152, eos_token_ids={EOS})
        request.tokenizer = self.tokenizer
        request.output_ids.append(first_token)
        request.update_finish_state(1)
        return request

    def step(self, runs, retained=None):
        """`runs`: (request, accepted tokens); `retained` of them pass the grammar."""
        alive = [(r, run) for r, run in runs if not r.finished()]
        correct = sum(len(run) - 1 for _, run in runs)
        for request, run in alive:
            request.spec_verify_ct += 1
            request.spec_num_correct_drafts += len(run) - 1
            request.update_spec_correct_drafts_histogram(len(run) - 1)
        generated = correct + len(runs)
        self.reporter.num_generated_tokens += generated
        self.reporter.spec_num_accept_tokens += generated
        self.reporter.spec_num_correct_drafts += correct
        self.reporter.spec_num_forward_ct += len(runs)
        for request, run in alive:
            kept = run[:retained]
            request.output_ids.extend(kept)
            request.update_finish_state(len(kept))
        batch = SimpleNamespace(reqs=[request for request, _ in runs])
        SchedulerMetricsReporter.report_decode_stats(self.reporter, False, batch, generated)


def counted(request) -> tuple[int, int, list[int]]:
    """Verifications, counted drafts, histogram; as SGLang sends them."""
    return (
        request.spec_verify_ct,
        request.spec_num_correct_drafts,
        list(request.spec_correct_drafts_histogram),
    )


def answer(scheduler, ids, k, **sampling):
    """Verify runs of k + 1 tokens of `ids` until the request ends."""
    request = scheduler.request(ids[0], **sampling)
    for start in range(1, len(ids), k + 1):
        if not request.finished():
            scheduler.step([(request, ids[start : start + k + 1])])
    assert request.finished()
    completion = request.finished_len or len(request.output_ids)
    verifications, drafts, histogram = counted(request)
    assert completion == 1 + verifications + drafts
    assert sum(histogram) == verifications
    assert sum(i * count for i, count in enumerate(histogram)) == drafts
    return completion, verifications, drafts


def test_a_length_that_ends_inside_a_run(tokenizer, steps):
    """vllm#56101: K=3, all drafts right, 6 tokens: 2.5 tokens a verification, not 4."""
    ids = tokenizer.encode(TEXT)
    scheduler = Scheduler(tokenizer)
    assert answer(scheduler, ids, 3, max_new_tokens=6) == (6, 2, 3)
    assert steps == [[3], [0]]
    # The server's own gauge of the acceptance length is a quotient of these.
    assert scheduler.reporter.spec_num_accept_tokens == 5
    assert scheduler.reporter.spec_num_correct_drafts == 3
    assert scheduler.reporter.spec_num_forward_ct == 2
    assert scheduler.reporter.num_generated_tokens == sum(scheduler.reporter.reported) == 5


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("tokens", range(2, 12))
def test_every_length(tokenizer, steps, k, tokens):
    completion, verifications, _ = answer(
        Scheduler(tokenizer), tokenizer.encode(TEXT), k, max_new_tokens=tokens
    )
    assert completion == tokens
    assert verifications == -(-(tokens - 1) // (k + 1))


@pytest.mark.parametrize(
    "sampling",
    [{}, {"stop": [" seven"]}, {"stop_regex": ["s.*n "]}, {"stop_token_ids": [905]}],
    ids=["eos", "stop string", "stop regex", "stop token id"],
)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_every_stop(tokenizer, steps, k, sampling):
    ids = tokenizer.encode(TEXT)
    at = 6
    if not sampling:
        ids.insert(at, EOS)
    elif "stop_token_ids" in sampling:
        sampling = {"stop_token_ids": [ids[at]]}
    completion, verifications, _ = answer(Scheduler(tokenizer), ids, k, **sampling)
    assert at < completion <= at + 2
    assert verifications == -(-(completion - 1) // (k + 1))


def test_a_grammar_that_ends_inside_a_run(tokenizer, steps):
    """SGLang cuts the run before the end of the answer is looked for."""
    ids = tokenizer.encode(TEXT)
    scheduler = Scheduler(tokenizer)
    request = scheduler.request(ids[0])
    request.grammar = SimpleNamespace(is_terminated=lambda: True)
    scheduler.step([(request, ids[1:5])], retained=2)
    assert counted(request) == (1, 1, [0, 1])
    assert steps == [[1]]


def test_an_aborted_request_keeps_what_it_sent(tokenizer, steps):
    ids = tokenizer.encode(TEXT)
    scheduler = Scheduler(tokenizer)
    request = scheduler.request(ids[0])
    request.to_finish = FINISH_ABORT("gone")
    scheduler.step([(request, ids[1:5])])
    assert request.finished()
    assert counted(request) == (1, 3, [0, 0, 0, 1])


def test_a_verification_of_an_answer_that_has_ended(tokenizer, steps):
    """Overlap scheduling launches it before it knows of the end; another request goes on."""
    ids = tokenizer.encode(TEXT)
    scheduler = Scheduler(tokenizer)
    short, long = scheduler.request(ids[0], max_new_tokens=2), scheduler.request(ids[0])
    scheduler.step([(short, ids[1:5]), (long, ids[1:5])])
    scheduler.step([(short, ids[5:9]), (long, ids[5:9])])
    assert counted(short) == (1, 0, [1])
    assert counted(long) == (2, 6, [0, 0, 0, 2])
    assert steps == [[0, 3], [3]]
    assert scheduler.reporter.spec_num_forward_ct == 3
    assert scheduler.reporter.spec_num_accept_tokens == 1 + 4 + 4
    # Nothing but a verification of an answer that has ended: SGLang divides by its count.
    scheduler.reporter.spec_num_forward_ct = 0
    scheduler.step([(short, ids[5:9])])
    assert scheduler.reporter.spec_num_forward_ct == 1
    assert steps[-1] == []
