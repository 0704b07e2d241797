"""One training run, from a configuration to a head directory: what `fastmtp train` does."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from fastmtp_sglang import smollm2
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training.config import OptimizerSection, TrainConfig
from fastmtp_sglang.training.export import export_head
from fastmtp_sglang.training.greedy import greedy_continuations
from fastmtp_sglang.training.hidden_states import store_hidden_states
from fastmtp_sglang.training.loss import LossWeights, OutputLayer
from fastmtp_sglang.training.model import ChainHead
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.training.records import documents, is_held_out, read_turns
from fastmtp_sglang.training.start import starting_head
from fastmtp_sglang.training.target import FrozenTarget
from fastmtp_sglang.training.trainer import ChainTrainer
from fastmtp_sglang.training.validation import free_running, in_vocabulary, teacher_forced
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


def target_directory(target: str) -> Path:
    """The checkpoint directory of `--target`."""
    return smollm2.checkpoint() if target == smollm2.NAME else Path(target)


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Train a head and write it to `config.output / "head"`.

    Args:
        config: of the run.
        resume: go on from the last checkpoint in `config.output`.

    Returns:
        The head directory.

    Raises:
        FastMTPError: something in the configuration, the data or the target does not fit.
    """
    checkpoint = get_last_checkpoint(str(config.output)) if config.output.is_dir() else None
    if checkpoint and not resume:
        raise FastMTPError(
            f"output {config.output} holds {Path(checkpoint).name} of an earlier run: go on with "
            "--resume, or choose another folder."
        )
    head_directory = config.output / "head"
    if head_directory.exists():
        raise FastMTPError(f"output {head_directory} exists already: that run is complete.")
    state = PartialState()
    # Prompts, greedy continuations and hidden states are made by one process and read by the rest.
    with state.main_process_first():
        prepared = prepare(config, state)
        head = starting_head(config.head.start, prepared.target.directory, config.head.num_steps)
    loss = config.loss
    head.attach(
        prepared.target,
        prepared.output,
        LossWeights(loss.cross_entropy, loss.kl, loss.kl_temperature),
    )
    trainer = ChainTrainer(
        head,
        training_arguments(config, state.num_processes),
        prepared.train,
        num_steps=config.head.num_steps,
        beta=loss.beta,
        validate=lambda trained: validate(trained, prepared, config.head.num_steps),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        export_head(
            Path(trained_checkpoint(trainer)),
            head_directory,
            target=prepared.target.directory,
            vocabulary=prepared.vocabulary_file,
            recipe=json.loads(config.model_dump_json()),
            metrics=metrics,
        )
    return head_directory


def trained_checkpoint(trainer: ChainTrainer) -> str:
    """Save the last state as a checkpoint if it is none yet; its folder."""
    folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    if not folder.is_dir():
        trainer.save_model(str(folder))
    return str(folder)


def prepare(config: TrainConfig, state: PartialState) -> Prepared:
    """Read the data, split it, and make what is not there yet."""
    directory = target_directory(config.target)
    tokens = vocabulary_target.load_target(str(directory))
    dtype = torch.bfloat16 if config.optimizer.bf16 else None
    target = FrozenTarget(directory, dtype=dtype, device=state.device)
    max_length = config.data.max_length
    turns = list(read_turns(config.data.train, tokens.tokenizer))
    if config.validation.data:
        held_turns = list(read_turns(config.validation.data, tokens.tokenizer))
        held_conversations = {turn.conversation for turn in held_turns}
    else:
        fraction = config.validation.fraction
        held_conversations = {
            turn.conversation for turn in turns if is_held_out(turn.conversation, fraction)
        }
        held_turns = [turn for turn in turns if turn.conversation in held_conversations]
    train_documents = documents(
        [turn for turn in turns if turn.conversation not in held_conversations], max_length
    )
    if not held_turns:
        raise FastMTPError(
            f"no conversation of {len(train_documents)} documents is held out for validation: "
            "give validation.data, or more validation.fraction."
        )
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


def validate(head: ChainHead, prepared: Prepared, num_steps: int) -> dict[str, float]:
    """All metrics of a head; without the prefix that Trainer gives them.

    loss_K and teacher_K per step, accepted_K and acceptance_length of the free-running chain with
    the full vocabulary, and the same with `draft_` before it with the draft vocabulary.
    """
    forced = teacher_forced(head, prepared.held_out, prepared.output, num_steps)
    metrics: dict[str, float] = {}
    for step, (loss, accepted) in enumerate(zip(forced.loss, forced.accepted, strict=True), 1):
        metrics |= {f"loss_{step}": loss, f"teacher_{step}": accepted}
    layers = {"": OutputLayer(prepared.target.output_weight)}
    if prepared.draft_output is not None:
        layers["draft_"] = prepared.draft_output
    for prefix, output in layers.items():
        free = free_running(head, prepared.greedy, prepared.target, output, num_steps)
        metrics |= {
            f"{prefix}accepted_{step}": share for step, share in enumerate(free.accepted, 1)
        }
        metrics[f"{prefix}acceptance_length"] = free.length
        metrics["drafts"] = free.drafts
    return {name: round(value, 4) for name, value in metrics.items()}


def training_arguments(config: TrainConfig, world_size: int) -> TrainingArguments:
    """Trainer's arguments for a configuration.

    Raises:
        FastMTPError: the batch does not divide into ranks and micro-batches.
    """
    optimizer = config.optimizer
    per_forward = _documents_per_forward(optimizer, world_size)
    every: dict[str, Any] = {
        "eval_strategy": "steps" if config.validation.every else "epoch",
        "save_strategy": "steps" if config.save_every else "epoch",
    }
    if config.validation.every:
        every["eval_steps"] = config.validation.every
    if config.save_every:
        every["save_steps"] = config.save_every
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(config.output / "tensorboard"))
    return TrainingArguments(
        output_dir=str(config.output),
        per_device_train_batch_size=per_forward,
        gradient_accumulation_steps=optimizer.batch_size // (per_forward * world_size),
        num_train_epochs=optimizer.epochs,
        max_steps=optimizer.max_steps or -1,
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        warmup_steps=optimizer.warmup,
        lr_scheduler_type="cosine",
        bf16=optimizer.bf16,
        seed=optimizer.seed,
        logging_steps=config.log_every,
        save_total_limit=config.keep_checkpoints,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        **every,
    )


def _documents_per_forward(optimizer: OptimizerSection, world_size: int) -> int:
    per_forward = min(optimizer.documents_per_forward, optimizer.batch_size)
    if optimizer.batch_size % (per_forward * world_size):
        raise FastMTPError(
            f"optimizer.batch_size {optimizer.batch_size} is no multiple of "
            f"optimizer.documents_per_forward {per_forward} x {world_size} processes: the last "
            "micro-batch of a step would be left out."
        )
    return per_forward


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
