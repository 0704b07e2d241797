"""One training run, from a configuration to a head directory: what `fastmtp train` does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments
from transformers.integrations import TensorBoardCallback

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.lock import sole_writer
from fastmtp_sglang.training.checkpoints import CheckpointClock, CheckpointFolder
from fastmtp_sglang.training.config import OptimizerSection, TrainConfig
from fastmtp_sglang.training.export import write_head
from fastmtp_sglang.training.fitted import fit
from fastmtp_sglang.training.liger import choose_loss
from fastmtp_sglang.training.loss import LossWeights, OutputLayer
from fastmtp_sglang.training.model import ChainHead, Output
from fastmtp_sglang.training.prepare import Prepared, prepare
from fastmtp_sglang.training.run_folder import check_settings
from fastmtp_sglang.training.start import starting_head
from fastmtp_sglang.training.trainer import ChainTrainer
from fastmtp_sglang.training.validation import free_running, teacher_forced


def train(config: TrainConfig) -> Path:
    """Train a head and write it to `config.output / "head"`, or go on with doing so.

    Args:
        config: of the run.

    Returns:
        The head directory.

    Raises:
        FastMTPError: something in the configuration, the data or the target does not fit, or the
            output holds a run of other settings.
    """
    # Without `cpu` accelerate sees one process on a machine without GPUs, however many there are.
    state = PartialState(cpu=not torch.cuda.is_available())
    with sole_writer(config.output, "fastmtp train") if state.is_main_process else nullcontext():
        return _go_on(config, state)


def _go_on(config: TrainConfig, state: PartialState) -> Path:
    head_directory = config.output / "head"
    checkpoints = CheckpointFolder(config.output)
    # Prompts, greedy continuations and hidden states are made by one process and read by the rest.
    with state.main_process_first():
        if state.is_main_process:
            check_settings(config)
            checkpoints.recover(state.print)
        if head_directory.exists():
            state.print(f"{head_directory} is there already: that run is complete")
            return head_directory
        checkpoint = checkpoints.newest()
        if checkpoint:
            state.print(f"going on after {checkpoint}")
        prepared = prepare(config, state)
        head = starting_head(
            config.head.start,
            prepared.target.directory,
            config.head.num_steps,
            config.output / "start",
            lambda head: _fit(head, prepared, state),
        )
    loss = config.loss
    weights = LossWeights(loss.cross_entropy, loss.kl, loss.kl_temperature)
    function, name = choose_loss(loss, prepared.target.device)
    state.print(f"{len(prepared.train):,} documents, {prepared.output}, {name}")
    head.attach(prepared.target, prepared.output, weights, function)
    trainer = ChainTrainer(
        head,
        training_arguments(config, state.num_processes),
        prepared.train,
        num_steps=config.head.num_steps,
        beta=loss.beta,
        clock=CheckpointClock(60 * config.save_minutes),
        validate=lambda trained: validate(trained, prepared, config.head.num_steps),
    )
    if state.is_main_process:
        writer = SummaryWriter(str(config.output / "tensorboard"))
        trainer.add_callback(TensorBoardCallback(writer))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    metrics = trainer.final_metrics()
    # Of FSDP's shards a whole: every rank takes part, the first one writes.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        write_head(
            head.config,
            weights,
            head_directory,
            target=prepared.target.directory,
            vocabulary=prepared.vocabulary_file,
            run={"recipe": config.model_dump(mode="json"), "metrics": metrics},
        )
    state.wait_for_everyone()
    return head_directory


def _fit(head: ChainHead, prepared: Prepared, state: PartialState) -> None:
    read = fit(head, prepared.train, prepared.target)
    if prepared.train[0].hidden_states is not None:
        # The model has only run for the fit: the states of all documents are stored.
        prepared.target.unload()
    state.print(f"the head's layer reads what the last layer does, by a map of {read:,} tokens")


def validate(head: torch.nn.Module, prepared: Prepared, num_steps: int) -> dict[str, float]:
    """All metrics of a head; without the prefix that Trainer gives them.

    loss_K and teacher_K per step, accepted_K and acceptance_length of the free-running chain with
    the full vocabulary, and the same with `draft_` before it with the draft vocabulary.
    """
    forced = teacher_forced(head, prepared.held_out, prepared.output, num_steps)
    metrics: dict[str, float] = {}
    for step, (loss, accepted) in enumerate(zip(forced.loss, forced.accepted, strict=True), 1):
        metrics |= {f"loss_{step}": loss, f"teacher_{step}": accepted}
    layers: dict[str, Output] = {"": OutputLayer(prepared.target.output_weight)}
    if prepared.draft_output is not None:
        layers["draft_"] = prepared.draft_output
    for prefix, output in layers.items():
        free = free_running(head, prepared.greedy, output, num_steps)
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
    }
    if config.validation.every:
        every["eval_steps"] = config.validation.every
    return TrainingArguments(
        output_dir=str(config.output),
        # In every line of the log: how it grew with the tokens.
        include_num_input_tokens_seen="all",
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
        use_cpu=not torch.cuda.is_available(),
        seed=optimizer.seed,
        logging_steps=config.log_every,
        # `CheckpointClock` saves.
        save_strategy="no",
        save_total_limit=config.keep_checkpoints,
        report_to=[],
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
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
