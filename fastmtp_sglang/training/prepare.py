"""What a training run reads: the data split, vocabulary, greedy continuations, hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import smollm2
from fastmtp_sglang.training.config import TrainConfig
from fastmtp_sglang.training.greedy import greedy_continuations
from fastmtp_sglang.training.hidden_states import store_hidden_states
from fastmtp_sglang.training.loss import OutputLayer
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.training.records import Turn, documents, is_held_out, read_turns
from fastmtp_sglang.training.target import FrozenTarget
from fastmtp_sglang.training.validation import in_vocabulary
from fastmtp_sglang.vocabulary import target as vocabulary_target
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
from fastmtp_sglang.vocabulary.required import required_ids, stop_ids, union


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
    train: list[Document]
    held_out: list[Document]
    greedy: list[Document]
    output: OutputLayer
    draft_output: OutputLayer | None
    vocabulary_file: Path | None


def prepare(config: TrainConfig, state: PartialState) -> Prepared:
    """Read the data, split it, and make what is not there yet."""
    directory = smollm2.directory("target", config.target)
    tokens = vocabulary_target.load_target(str(directory))
    dtype = torch.bfloat16 if config.optimizer.bf16 else None
    target = FrozenTarget(directory, dtype=dtype, device=state.device)
    max_length = config.data.max_length
    turns, held_turns = split_turns(config, tokens.tokenizer)
    train_documents = documents(turns, max_length)
    held_documents = documents(held_turns, max_length)[: config.validation.documents]
    # Spread over the held-out turns, whose order may follow their sources.
    stride = max(1, len(held_turns) // config.validation.prompts)
    prompts = [turn.prompt_ids for turn in held_turns[::stride][: config.validation.prompts]]
    fits = max_length - config.validation.max_new_tokens
    folder = config.data.offline or config.output
    greedy = greedy_continuations(
        target,
        [prompt for prompt in prompts if len(prompt) <= fits],
        sorted(stop_ids(tokens)),
        config.validation.max_new_tokens,
        folder / "greedy.json",
    )
    output, vocabulary_file = _output_layer(config, target, train_documents, tokens)
    draft_output = output if output.local_ids is not None else None
    if config.validation.draft_vocabulary:
        draft_output = OutputLayer.restricted(
            target.output_weight, _listed(config.validation.draft_vocabulary, tokens)
        )
    if config.data.offline:
        train_documents = _stored(folder / "train", train_documents, target, state)
    return Prepared(
        target,
        [in_vocabulary(document, output) for document in train_documents],
        _stored(folder / "held_out", held_documents, target, state),
        _stored(folder / "greedy", greedy, target, state),
        output,
        draft_output,
        vocabulary_file,
    )


def split_turns(config: TrainConfig, tokenizer: Any) -> tuple[list[Turn], list[Turn]]:
    """Turns to train on and held-out turns; no conversation is in both.

    Raises:
        FastMTPError: nothing is held out.
    """
    turns = list(read_turns(config.data.train, tokenizer))
    if config.validation.data:
        held_out = list(read_turns(config.validation.data, tokenizer))
    else:
        fraction = config.validation.fraction
        held_out = [turn for turn in turns if is_held_out(turn.conversation, fraction)]
    if not held_out:
        raise FastMTPError(
            f"none of {len(turns)} turns is held out for validation: give validation.data, or a "
            "higher validation.fraction."
        )
    conversations = {turn.conversation for turn in held_out}
    return [turn for turn in turns if turn.conversation not in conversations], held_out


def _output_layer(
    config: TrainConfig, target: FrozenTarget, train: list[Document], tokens: Any
) -> tuple[OutputLayer, Path | None]:
    name = config.vocabulary.output
    if name == "full":
        return OutputLayer(target.output_weight), None
    if name == "data":
        seen = torch.cat([document.input_ids[document.counted] for document in train]).unique()
        needed = torch.tensor(sorted(union(required_ids(tokens))))
        return OutputLayer.restricted(
            target.output_weight, torch.cat((seen, needed)).unique().to(target.device)
        ), None
    return OutputLayer.restricted(target.output_weight, _listed(Path(name), tokens)), Path(name)


def _listed(path: Path, tokens: Any) -> torch.Tensor:
    """All ids of a draft vocabulary file, int64, sorted."""
    vocabulary = DraftVocabulary.load(
        path, vocab_size=tokens.vocab_size, tokenizer_fingerprint=tokens.fingerprint
    )
    return torch.cat(list(vocabulary.ids.values())).unique()


def _stored(
    folder: Path, plain: list[Document], target: FrozenTarget, state: PartialState
) -> list[Document]:
    def progress(done: int, total: int) -> None:
        state.print(f"hidden states in {folder}: {done:,} of {total:,} tokens", flush=True)

    return store_hidden_states(folder, plain, target, progress)
