"""Timers around a worker's stages, and what becomes of their records, without an engine.

Alone: pytest tests/benchmarks/test_stages.py
"""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from fastmtp_benchmarks import stages


class Worker:
    """Two stages, one within the other, and one that fails."""

    def verify(self, batch):
        return self.decode(batch)

    def decode(self, batch):
        return len(batch)

    def fail(self, batch):
        raise ValueError("lost")


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """A `Worker` with timers, and what they have written: stage and rows."""

    class Timed(Worker):
        pass

    timers = stages._Timers(tmp_path / "records.jsonl")
    for method, stage in (("verify", "step"), ("decode", "decode"), ("fail", "fail")):
        timers.add(Timed, method, stage, lambda _, batch: len(batch or ()))

    def records():
        lines = (tmp_path / "records.jsonl").read_text().splitlines()
        assert all(json.loads(line)[2] >= 0 for line in lines)
        return [tuple(json.loads(line)[:2]) for line in lines]

    return SimpleNamespace(worker=Timed(), records=records, timers=timers, kind=Timed)


def test_stages_are_timed_where_there_are_rows(timed):
    assert timed.worker.verify([1, 2]) == 2
    assert timed.worker.decode(batch=[1, 2, 3]) == 3
    assert timed.worker.decode([]) == 0
    assert timed.records() == [("decode", 2), ("step", 2), ("decode", 3)]


def test_a_stage_within_itself_is_timed_once(timed):
    timed.timers.add(timed.kind, "verify", "decode", lambda _, batch: len(batch))
    timed.worker.verify([1])
    assert timed.records() == [("step", 1), ("decode", 1)]


def test_a_stage_that_fails_is_over(timed):
    with pytest.raises(ValueError, match="lost"):
        timed.worker.fail([1])
    assert (timed.timers.running, timed.records()) == ([], [("fail", 1)])


@pytest.fixture
def engine(monkeypatch):
    """Stands in for SGLang's: answers, and writes the records that a test gives it."""
    made = SimpleNamespace(records=[], meta={}, asked=[], closed=0)

    class Engine:
        def __init__(self, **flags):
            made.flags = flags
            tokenizer = SimpleNamespace(chat_template=None, encode=lambda text: [len(text)])
            self.tokenizer_manager = SimpleNamespace(tokenizer=tokenizer)

        def generate(self, input_ids, sampling_params):
            made.asked.append(len(input_ids))
            if len(made.asked) == 1:
                with open(stages.os.environ[stages._RECORDS], "a") as file:
                    file.writelines(json.dumps(record) + "\n" for record in made.records)
            return [{"meta_info": made.meta}] * len(input_ids)

        def shutdown(self):
            made.closed += 1

    module = ModuleType("engine")
    module.Engine = Engine
    monkeypatch.setitem(sys.modules, "sglang.srt.entrypoints.engine", module)
    monkeypatch.setenv(stages._RECORDS, "")
    return made


def test_medians_of_stages_without_the_first_steps(engine):
    warm_up = [["verify", 2, 9.0]] * 5
    engine.records = [*warm_up, *(["verify", 2, s] for s in (0.001, 0.004, 0.002))]
    engine.records += [["verify", 1, 7.0]] * 3  # of another batch size, and no more than a warm-up
    engine.meta = {"spec_verify_ct": 4, "spec_num_correct_drafts": 6}
    measured = stages._Measured()
    measured.run("/m", {"x": 1}, [2], tokens=11)
    assert engine.flags == {"model_path": "/m", "x": 1}
    assert engine.asked == [2, 2]  # the first of them warms up
    result = measured.result(2)
    assert (result["verify"], result["acceptance_length"]) == (2.0, 2.5)
    assert (result["tokens_per_second"] > 0, engine.closed) == (True, 1)


def test_drafts_behind_the_end_of_an_answer_do_not_count(engine):
    """Two requests of 11 tokens: 10 each after the prefill's, 4 of them one a verification."""
    engine.meta = {"spec_verify_ct": 4, "spec_num_correct_drafts": 9}
    measured = stages._Measured()
    measured.run("/m", {}, [2], tokens=11)
    assert measured.counters[2] == (12, 8)


def test_without_drafts_there_is_no_acceptance(engine):
    measured = stages._Measured()
    measured.run("/m", {}, [1], tokens=4)
    assert set(measured.result(1)) == {"tokens_per_second"}


def test_an_engine_is_ended_whatever_happens(engine):
    engine.meta = None  # answers of another kind
    with pytest.raises(AttributeError):
        stages._Measured().run("/m", {}, [1], tokens=4)
    assert engine.closed == 1


def test_prompts_are_questions_in_the_chat_template():
    def apply(messages, **options):
        return [messages[0]["content"], options]

    chat = SimpleNamespace(chat_template="x", apply_chat_template=apply)
    first, options = stages._prompts(chat, 1)[0]
    assert first == "Explain how rain works."
    assert options == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    plain = SimpleNamespace(chat_template=None, encode=lambda text: text)
    asked = stages._prompts(plain, 25)
    assert (len(asked), len(set(asked)), asked[24]) == (25, 24, asked[0])
