"""What a run reads: who is held out, which prompts are continued, which ids the loss sees.

Alone: pytest tests/training/test_prepare.py
"""

import json
import random

import pytest
import torch
from accelerate import PartialState

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training import prepare as module
from fastmtp_sglang.training.config import TrainConfig
from fastmtp_sglang.training.prepare import prepare, read_corpus
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
from fastmtp_sglang.vocabulary.required import required_ids, union
from fastmtp_sglang.vocabulary.target import load_target

SEED = 20250918


@pytest.fixture(scope="module")
def tokens(pair):
    target = load_target(str(pair.target))
    target.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    return target


@pytest.fixture(autouse=True)
def _read_once(tokens, monkeypatch):
    """The tokenizer takes most of a second each time."""
    monkeypatch.setattr(module.vocabulary_target, "load_target", lambda directory: tokens)


@pytest.fixture(scope="module")
def state():
    return PartialState(cpu=True)


@pytest.fixture
def make(pair, tmp_path):
    """A configuration of the tiny pair; fields by dotted key."""

    def make(**changes) -> TrainConfig:
        fields = {
            "target": str(pair.target),
            "output": tmp_path / "run",
            "data": {"train": [tmp_path / "train.jsonl"], "max_length": 64},
            "validation": {"fraction": 0.3, "max_new_tokens": 8, "prompts": 2},
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            fields.setdefault(section, {})[name] = value
        return TrainConfig.model_validate(fields)

    return make


def write(path, *conversations, turns=1):
    """Records of conversations by name; the first prompt token tells which one it is."""
    with path.open("w") as file:
        for name in conversations:
            ids = [100 + int(name), 7, 8]
            for turn in range(turns):
                answer = [300 + int(name), 11 + turn, 2]
                record = {"conversation": str(name), "prompt_ids": ids, "answer_ids": answer}
                file.write(json.dumps(record) + "\n")
                ids = [*ids, *answer, 9]
    return path


def conversations(documents) -> list[int]:
    return [document.input_ids[0].item() - 100 for document in documents]


def test_no_conversation_is_in_both(make, tokens, state, tmp_path):
    write(tmp_path / "train.jsonl", *range(40), turns=2)
    corpus, held_out = read_corpus(make(), tokens, state)
    trained, held = conversations(corpus), {int(turn.conversation) for turn in held_out}
    assert 4 < len(held) < 20
    assert sorted([*trained, *held]) == list(range(40))
    assert len(held_out) == 2 * len(held)  # with all of their turns


def test_held_out_files_are_all_held_out_and_never_trained_on(make, tokens, state, tmp_path):
    """`fraction` no longer counts; a conversation that is in both files is not trained on."""
    write(tmp_path / "train.jsonl", *range(10))
    write(tmp_path / "held.jsonl", 3, 77)
    config = make(validation__data=[tmp_path / "held.jsonl"], validation__fraction=0.9)
    corpus, held_out = read_corpus(config, tokens, state)
    assert [int(turn.conversation) for turn in held_out] == [3, 77]
    assert conversations(corpus) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_nothing_held_out_is_refused(make, tokens, state, tmp_path):
    write(tmp_path / "train.jsonl", *range(40))
    with pytest.raises(FastMTPError, match=r"none of 40 turns is held out .*validation\.data, or"):
        read_corpus(make(validation__fraction=0.0), tokens, state)


@pytest.mark.parametrize("bad", [2, 3, 5])
def test_what_is_left_out_is_shown_three_times_and_counted(
    make, tokens, state, tmp_path, capsys, bad
):
    path = write(tmp_path / "train.jsonl", *range(40))
    with path.open("a") as file:
        file.writelines('{"messages": [{"role": "user", "content": "Hi"}]}\n' for _ in range(bad))
    read_corpus(make(), tokens, state)
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if "train.jsonl, line" in line] == shown[: min(bad, 3)]
    assert shown[3:] == ([f"left out: {bad - 3} more"] if bad > 3 else [])


def test_what_was_left_out_is_shown_also_where_nothing_is_left(
    make, tokens, state, tmp_path, capsys
):
    """It is the reason of the error."""
    (tmp_path / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(FastMTPError, match="no record holds an answer token"):
        read_corpus(make(), tokens, state)
    assert "has no message of the assistant" in capsys.readouterr().out


@pytest.fixture
def prompted(monkeypatch):
    """The prompts that are continued, without the target's saying anything."""
    asked = []

    def continuations(target, prompts, stop_ids, max_new_tokens, cache):
        asked.append((prompts, stop_ids, max_new_tokens, cache))
        return []

    monkeypatch.setattr(module, "greedy_continuations", continuations)
    monkeypatch.setattr(module, "store_hidden_states", lambda folder, plain, *_: plain)
    return asked


def test_prompts_are_spread_over_the_held_out_turns(make, state, tmp_path, prompted):
    write(tmp_path / "train.jsonl", 0)
    write(tmp_path / "held.jsonl", *range(10, 21))
    prepare(make(validation__data=[tmp_path / "held.jsonl"], validation__prompts=3), state)
    ((prompts, stop_ids, max_new_tokens, cache),) = prompted
    assert [prompt[0] - 100 for prompt in prompts] == [10, 13, 16]
    assert 2 in stop_ids
    assert (max_new_tokens, cache) == (8, tmp_path / "run" / "greedy.json")


def test_prompts_leave_room_for_their_continuation(make, state, tmp_path, prompted):
    """56 tokens of prompt and 8 of continuation are 64; an empty prompt has no hidden state."""
    write(tmp_path / "train.jsonl", *range(5))
    lines = [
        {"prompt_ids": [5] * length, "answer_ids": [6, 7, 2]} for length in (0, 1, 56, 57, 100)
    ]
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = make(validation__data=[held], validation__prompts=5)
    prepare(config, state)
    assert [len(prompt) for prompt in prompted[0][0]] == [1, 56]
    held.write_text("".join(json.dumps(lines[index]) + "\n" for index in (0, 3, 4)))
    with pytest.raises(
        FastMTPError,
        match=r"none of 3 held-out prompts has 1 to 56 tokens.*max_length 64.*new_tokens 8 more",
    ):
        prepare(config, state)


def draft_vocabulary(path, tokens, **ids):
    scripts = torch.zeros(tokens.vocab_size, dtype=torch.int8)
    lists = {name: torch.tensor(listed) for name, listed in ids.items()}
    DraftVocabulary(
        ids=lists,
        token_scripts=scripts,
        routes={},
        vocab_size=tokens.vocab_size,
        tokenizer_fingerprint=tokens.fingerprint,
    ).save(path)
    return path


def test_the_ids_that_the_loss_sees(make, tokens, state, tmp_path, prompted):
    """All; those of the answers and the required ones; or all lists of a file together."""
    write(tmp_path / "train.jsonl", *range(20))
    listed = draft_vocabulary(tmp_path / "v.safetensors", tokens, en=[2, 11, 305], zh=[7, 11])

    full = prepare(make(), state)
    assert full.output.local_ids is None
    assert (full.draft_output, full.vocabulary_file) == (None, None)
    assert sum(d.counted.sum().item() for d in full.train) == 3 * len(full.train)

    data = prepare(make(vocabulary__output="data"), state)
    trained = {i for d in data.train for i in d.input_ids[d.counted].tolist()}
    assert set(data.output.ids.tolist()) == trained | union(required_ids(tokens))
    assert (data.draft_output, data.vocabulary_file) == (data.output, None)

    for kind in ("own", "union"):
        file = prepare(make(vocabulary__output=str(listed), vocabulary__lists=kind), state)
        # No list is for these texts, of which no token belongs to a script.
        output = file.output.layers[-1] if kind == "own" else file.output
        assert output.ids.tolist() == [2, 7, 11, 305]
        assert (file.draft_output, file.vocabulary_file) == (file.output, listed)
        # What it cannot score does not count.
        for document in file.train:
            kept = document.input_ids[document.counted].tolist()
            assert kept == ([305, 11, 2] if document.input_ids[0] == 105 else [11, 2])

    beside = prepare(make(validation__draft_vocabulary=listed), state)
    assert beside.output.local_ids is None
    assert [layer.ids.tolist() for layer in beside.draft_output.layers] == [
        *([2, 11, 305], [7, 11]),
        [2, 7, 11, 305],
    ]
    assert beside.vocabulary_file is None


def test_a_vocabulary_of_another_target_is_refused(make, tokens, state, tmp_path, prompted):
    write(tmp_path / "train.jsonl", *range(20))
    path = tmp_path / "v.safetensors"
    path.write_bytes(random.Random(SEED).randbytes(500))
    with pytest.raises(FastMTPError, match=r"v\.safetensors.*not a safetensors file"):
        prepare(make(vocabulary__output=str(path)), state)


def test_offline_everything_is_stored_and_the_model_goes(make, state, tmp_path):
    """Train, held out and greedy have hidden states; online only what validation reads."""
    write(tmp_path / "train.jsonl", *range(8))
    states = tmp_path / "states"
    offline = prepare(make(data__offline=states), state)
    assert {path.name for path in states.iterdir()} == {
        "greedy.json", "train", "held_out", "greedy",
    }  # fmt: skip
    for documents in (offline.train, offline.held_out, offline.greedy):
        assert documents
        assert all(document.hidden_states is not None for document in documents)
    assert "model" not in vars(offline.target)

    online = prepare(make(), state)
    assert [d.hidden_states for d in online.train] == [None] * len(online.train)
    assert all(document.hidden_states is not None for document in online.held_out)
    assert "model" in vars(online.target)
    assert not (tmp_path / "run" / "train").exists()
