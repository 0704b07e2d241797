"""One optimizer step does not depend on how its batch was split, and a resumed run on nothing.

Alone: pytest tests/training/test_trainer.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pairs
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from fastmtp_sglang.training.loss import step_weights
from fastmtp_sglang.training.packing import Document, pack
from fastmtp_sglang.training.trainer import ChainTrainer, Documents

pytestmark = pytest.mark.heavy

# Lengths and masks differ a lot: a mean of means would be far off. Two documents count nothing.
LENGTHS = (4, 30, 5, 9, 21, 3, 12, 7)
BETA = 0.6


def with_states(pair: pairs.Pair, lengths=LENGTHS, dtype=torch.float64) -> list[Document]:
    target = pair.frozen(dtype)
    found = []
    for index, document in enumerate(pairs.random_documents(*lengths, prompt=3)):
        states = target.packed_hidden_states(document.input_ids, [len(document.input_ids)])
        counted = document.counted & (index % 4 != 2)
        found.append(Document(document.input_ids, counted, states))
    return found


def arguments(folder: Path, per_device: int, accumulation: int, **options) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        **{"save_strategy": "no", "lr_scheduler_type": "constant", **options},
    )


def one_step(pair: pairs.Pair, folder: Path, per_device: int, accumulation: int):
    """Parameters after one step of plain gradient descent."""
    head = pair.chain_head()
    trainer = ChainTrainer(
        head,
        arguments(
            folder, per_device, accumulation, optim="sgd", max_steps=1, learning_rate=1e-2,
            max_grad_norm=0,
        ),
        with_states(pair),
        num_steps=3,
        beta=BETA,
    )  # fmt: skip
    trainer.train()
    return {name: value.detach() for name, value in head.named_parameters()}, trainer


@pytest.mark.parametrize(("per_device", "accumulation"), [(8, 1), (2, 4), (1, 8), (3, 3)])
def test_step_is_the_formula_for_any_split(pair, tmp_path, per_device, accumulation):
    """sum_k alpha_k * mean over all labels of step k, in one batch, without Trainer."""
    found, trainer = one_step(pair, tmp_path / "run", per_device, accumulation)

    head = pair.chain_head()
    batch = pack(with_states(pair), 3)
    sums = head(**batch)["sums"]
    loss = (step_weights(BETA, 3) * sums / batch["counts"]).sum()
    loss.backward()
    for name, parameter in head.named_parameters():
        expected = parameter.detach() - 1e-2 * parameter.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-11)
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for step in range(3):
        mean = (sums[step] / batch["counts"][step]).item()
        assert logged[f"loss_{step + 1}"] == pytest.approx(mean, abs=1e-3)


def test_two_ranks_equal_one(pair, tmp_path):
    """Under DDP, with documents that do not divide by the ranks."""
    script = Path(__file__).with_name("ddp_step.py")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(script.parent), str(script.parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ran = subprocess.run(
        [sys.executable, *launch, script, pair.target, pair.head, tmp_path],
        env=environment, timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    expected, _ = one_step(pair, tmp_path / "alone", 8, 1)
    found = load_file(tmp_path / "ddp.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


def test_resumed_run_equals_uninterrupted_bit_for_bit(pair, tmp_path):
    documents = with_states(pair, lengths=(4, 12, 5, 9, 7, 3, 12, 7, 6), dtype=torch.float32)

    def run(folder: Path, checkpoint: Path | None) -> dict[str, torch.Tensor]:
        head = pair.chain_head(torch.float32)
        trainer = ChainTrainer(
            head,
            arguments(
                folder, 2, 2, num_train_epochs=3, save_strategy="steps", save_steps=4,
                learning_rate=1e-2, lr_scheduler_type="cosine", warmup_steps=0.1,
            ),
            documents,
            num_steps=3,
            beta=BETA,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        assert trainer.state.global_step == 9
        return head.state_dict()

    whole = run(tmp_path / "whole", None)
    # The middle of the second epoch of three.
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-4")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    start = pair.chain_head(torch.float32).state_dict()
    assert not any(torch.equal(tensor, start[name]) for name, tensor in whole.items())


def test_only_the_head_is_trained(pair, tmp_path):
    _, trainer = one_step(pair, tmp_path / "run", 8, 1)
    target, output, _ = trainer.model._frozen
    assert torch.equal(output.weight, pair.frozen().output_weight)
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.parameters()}
    assert not any(id(weight) in trained for weight in (target.output_weight, output.weight))


def test_idle_documents_fill_up_batches(pair):
    documents = with_states(pair)
    padded = Documents(documents, multiple=5)
    assert len(padded) == 10
    assert padded[7] is documents[7]
    assert pack([padded[8], padded[9]], 3)["counts"].tolist() == [0, 0, 0]
