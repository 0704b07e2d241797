"""What a training run reads: the data split, vocabulary, greedy continuations, hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import catalog
from fastmtp_sglang.training.config import TrainConfig
from fastmtp_sglang.training.corpus import Changed, Corpus
from fastmtp_sglang.training.greedy import greedy_continuations
from fastmtp_sglang.training.hidden_states import store_hidden_states
from fastmtp_sglang.training.loss import OutputLayer
from fastmtp_sglang.training.model import Output
from fastmtp_sglang.training.own_lists import OwnLists, all_ids
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.training.records import Turn, documents, is_held_out, read_turns
from fastmtp_sglang.training.target import FrozenTarget
from fastmtp_sglang.vocabulary import target as vocabulary_target
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
from fastmtp_sglang.vocabulary.required import required_ids, stop_ids, union
from fastmtp_sglang.vocabulary.target import Target

# Records that cannot be trained on are counted; so many are shown.
_SHOWN = 3


@dataclass(frozen=True)
class Prepared:
    """Everything that a run reads.

    Attributes:
        train: documents, with hidden states if they are stored; what the output layer cannot score
            does not count.
        held_out: documents with hidden states.
        greedy: the target's greedy continuations of held-out prompts, with hidden states.
        output: the output layer of the loss.
        draft_output: the output layer of a draft vocabulary that validation also uses, or None.
        vocabulary_file: the draft vocabulary that belongs to the head, or None.
    """

    target: FrozenTarget
    train: Sequence[Document]
    held_out: Sequence[Document]
    greedy: Sequence[Document]
    output: Output
    draft_output: Output | None
    vocabulary_file: Path | None


def prepare(config: TrainConfig, state: PartialState) -> Prepared:
    """Read the data, split it, and make what is not there yet."""
    directory = catalog.directory("target", config.target)
    tokens = vocabulary_target.load_target(str(directory))
    dtype = torch.bfloat16 if config.optimizer.bf16 else None
    target = FrozenTarget(directory, dtype=dtype, device=state.device)
    max_length = config.data.max_length
    corpus, held_turns = read_corpus(config, tokens, state)
    held_documents = documents(held_turns, max_length)[: config.validation.documents]
    # Spread over the held-out turns, whose order may follow their sources.
    stride = max(1, len(held_turns) // config.validation.prompts)
    prompts = [
        turn.prompt_ids.tolist() for turn in held_turns[::stride][: config.validation.prompts]
    ]
    prompts = _that_fit(prompts, config)
    folder = config.data.offline or config.output
    greedy = greedy_continuations(
        target,
        prompts,
        sorted(stop_ids(tokens)),
        config.validation.max_new_tokens,
        folder / "greedy.json",
    )
    output, vocabulary_file = _output_layer(config, target, corpus, tokens)
    draft_output = None if config.vocabulary.output == "full" else output
    if config.validation.draft_vocabulary:
        draft_output = _of_file(config.validation.draft_vocabulary, config, target, tokens)
    train: Sequence[Document] = corpus
    if config.data.offline:
        train = _stored(folder / "train", corpus, target, state)
    held_out = _stored(folder / "held_out", held_documents, target, state)
    continued = _stored(folder / "greedy", greedy, target, state)
    if config.data.offline:
        target.unload()
    return Prepared(
        target,
        Changed(train, lambda _, document: output.to_train(document)),
        held_out,
        continued,
        output,
        draft_output,
        vocabulary_file,
    )


def read_corpus(
    config: TrainConfig, target: Target, state: PartialState
) -> tuple[Corpus, list[Turn]]:
    """Documents to train on, and held-out turns; no conversation is in both.

    Raises:
        FastMTPError: nothing is held out, or nothing is left to train on.
    """
    skipped: list[str] = []
    validation = config.validation
    held_out = list(read_turns(validation.data, target, skipped.append))
    elsewhere = {turn.conversation for turn in held_out}
    fraction = 0.0 if validation.data else validation.fraction
    count = len(held_out)

    def to_train() -> Iterator[Turn]:
        nonlocal count
        for turn in read_turns(config.data.train, target, skipped.append):
            count += 1
            if is_held_out(turn.conversation, fraction):
                held_out.append(turn)
            elif turn.conversation not in elsewhere:
                yield turn

    try:
        corpus = documents(to_train(), config.data.max_length)
    finally:
        for line in skipped[:_SHOWN]:
            state.print(f"left out: {line}")
        if len(skipped) > _SHOWN:
            state.print(f"left out: {len(skipped) - _SHOWN:,} more")
    if not held_out:
        raise FastMTPError(
            f"none of {count} turns is held out for validation: give validation.data, or a "
            "higher validation.fraction."
        )
    return corpus, held_out


def _that_fit(prompts: list[list[int]], config: TrainConfig) -> list[list[int]]:
    """The prompts that leave room for a continuation; an empty one has no hidden state."""
    fits = config.data.max_length - config.validation.max_new_tokens
    found = [prompt for prompt in prompts if 0 < len(prompt) <= fits]
    if not found:
        raise FastMTPError(
            f"none of {len(prompts)} held-out prompts has 1 to {fits} tokens, so that data."
            f"max_length {config.data.max_length} holds validation.max_new_tokens "
            f"{config.validation.max_new_tokens} more: change one of the two, or give "
            "validation.data with prompts."
        )
    return found


def _output_layer(
    config: TrainConfig, target: FrozenTarget, train: Corpus, tokens: Target
) -> tuple[Output, Path | None]:
    name = config.vocabulary.output
    if name == "full":
        return OutputLayer(target.output_weight), None
    if name == "data":
        seen = train.counted_ids(tokens.vocab_size)
        needed = torch.tensor(sorted(union(required_ids(tokens))))
        return OutputLayer.restricted(
            target.output_weight, torch.cat((seen, needed)).unique().to(target.device)
        ), None
    return _of_file(Path(name), config, target, tokens), Path(name)


def _of_file(path: Path, config: TrainConfig, target: FrozenTarget, tokens: Target) -> Output:
    vocabulary = DraftVocabulary.load(
        path, vocab_size=tokens.vocab_size, tokenizer_fingerprint=tokens.fingerprint
    )
    if config.vocabulary.lists == "own" and len(vocabulary.ids) > 1:
        return OwnLists.of(target.output_weight, vocabulary)
    return OutputLayer.restricted(target.output_weight, all_ids(vocabulary).to(target.device))


def _stored(
    folder: Path, plain: Sequence[Document], target: FrozenTarget, state: PartialState
) -> Sequence[Document]:
    def progress(done: int, total: int) -> None:
        state.print(f"hidden states in {folder}: {done:,} of {total:,} tokens", flush=True)

    return store_hidden_states(folder, plain, target, progress)
