"""`transformers.Trainer` for a chain: its loss, how it is normalized, and its validation.

The loss of an optimizer step is sum_k alpha_k * (sum of step k's loss over all labels of the whole
accumulated batch, on all ranks) / (number of those labels). So the gradient does not depend on how
the batch was split. Checkpoints are saved by `checkpoints`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from fastmtp_sglang.training.checkpoints import CheckpointClock, CheckpointFolder
from fastmtp_sglang.training.loss import step_weights
from fastmtp_sglang.training.model import ChainHead
from fastmtp_sglang.training.packing import Document, pack

Validate = Callable[[torch.nn.Module], dict[str, float]]


class Documents(Dataset):
    """Documents, and idle ones up to a multiple of `multiple`.

    Batches, ranks and micro-batches then come out even without a document being seen twice: an idle
    one has one token and no label, and adds nothing to loss or gradient.
    """

    def __init__(self, documents: Sequence[Document], multiple: int = 1) -> None:
        self._documents = documents
        self._length = -(-len(documents) // multiple) * multiple
        first = documents[0]
        self._idle = Document(
            first.input_ids[:1],
            torch.zeros(1, dtype=torch.bool),
            None if first.hidden_states is None else first.hidden_states[:1],
            None if first.lists is None else first.lists[:1],
        )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Document:
        return self._documents[index] if index < len(self._documents) else self._idle


class ChainTrainer(Trainer):
    """Train a `ChainHead`.

    Args:
        model: the head, with its frozen parts attached.
        args: as for every Trainer; a device batch is a number of documents.
        documents: what is trained on.
        num_steps: K.
        beta: weight ratio of consecutive steps.
        clock: says when to save.
        validate: called in the place of Trainer's evaluation loop; its metrics are logged.
    """

    def __init__(
        self,
        model: ChainHead,
        args: TrainingArguments,
        documents: Sequence[Document],
        *,
        num_steps: int,
        beta: float,
        clock: CheckpointClock | None = None,
        validate: Validate | None = None,
    ) -> None:
        # Whole batches: the shuffled order then depends on the batch size, not on its split.
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        data = Documents(documents, args.world_size * per_step)
        super().__init__(
            model=model,
            args=args,
            train_dataset=data,
            # Only its presence matters: `evaluate` is ours.
            eval_dataset=data if validate else None,
            data_collator=lambda group: pack(group, num_steps),
            callbacks=[clock] if clock else [],
        )
        self._clock = clock
        self._checkpoints = CheckpointFolder(Path(args.output_dir))
        # Our loss is already normalized over the accumulated batch.
        self.loss_is_scaled_for_ga = True
        self._weights = step_weights(beta, num_steps)
        self._validate = validate
        self._measured: tuple[int, dict[str, float]] = (-1, {})
        self._reset_window()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Take the micro-batches of one optimizer step and count its labels on all ranks, [K]."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.zeros(len(self._weights), dtype=torch.int64, device=device)
        for batch in samples:
            counts += batch["counts"].to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts).view(self.args.world_size, -1).sum(0)
        return samples, counts

    def compute_loss(  # type: ignore[override]
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss."""
        outputs = model(**inputs)
        assert num_items_in_batch is not None
        sums = outputs["sums"]
        scale = self._weights.to(sums) / num_items_in_batch.clamp(min=1)
        # DDP and FSDP average gradients over ranks; the shares have to be summed.
        loss = (sums * scale).sum() * self.args.world_size
        self._sums += sums.detach().double().cpu()
        self._correct += outputs["correct"].cpu()
        self._counts += inputs["counts"].cpu()
        self._tokens += len(inputs["input_ids"])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add loss and accuracy of each step, and tokens per second, since the last line."""
        if "loss" in logs:
            counts = self._counts.clamp(min=1)
            for step, (loss, hits) in enumerate(
                zip(self._sums / counts, self._correct / counts, strict=True), 1
            ):
                logs[f"loss_{step}"] = round(loss.item(), 4)
                logs[f"accuracy_{step}"] = round(hits.item(), 4)
            logs["tokens_per_second"] = round(self._tokens / (time.monotonic() - self._since), 1)
            self._reset_window()
        super().log(logs, start_time)

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Run our validation on every rank: all do the same, so that none waits for another."""
        begin = time.monotonic()
        if self._clock and self._clock.is_due(self.args, share=0.5):
            # It may take minutes, and what was learned before it must not be lost meanwhile.
            self._save_checkpoint(self.model, trial=None)
            self._clock.restart()
        metrics = self._measure(metric_key_prefix)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self._since += time.monotonic() - begin
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes a checkpoint; `_save_checkpoint` puts it where it belongs."""
        return str(self._checkpoints.staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every rank has a file in it
        if self.is_world_process_zero():
            self._checkpoints.put_in_place(self.state.global_step, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def final_metrics(self) -> dict[str, float]:
        """The metrics of the last step, measured now if they were not."""
        step, metrics = self._measured
        return metrics if step == self.state.global_step else self._measure("eval")

    def _measure(self, prefix: str) -> dict[str, float]:
        assert self._validate is not None
        self.model.eval()
        found = self._validate(self._whole_model())
        self.model.train()
        metrics = {f"{prefix}_{name}": value for name, value in found.items()}
        self._measured = (self.state.global_step, metrics)
        return metrics

    def _whole_model(self) -> torch.nn.Module:
        """What to call: FSDP's wrapper holds the only whole parameters."""
        return self.model_wrapped if self.is_fsdp_enabled else self.model

    def _reset_window(self) -> None:
        steps = len(self._weights)
        self._sums = torch.zeros(steps, dtype=torch.float64)
        self._correct = torch.zeros(steps, dtype=torch.int64)
        self._counts = torch.zeros(steps, dtype=torch.int64)
        self._tokens = 0
        self._since = time.monotonic()
