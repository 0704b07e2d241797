"""One step on two ranks, for `test_trainer`: torchrun ddp_step.py TARGET HEAD FOLDER."""

import sys
from pathlib import Path

import pairs
from safetensors.torch import save_file
from test_trainer import one_step

if __name__ == "__main__":
    target, head, folder = map(Path, sys.argv[1:])
    # 8 documents in micro-batches of 3 on 2 ranks: 12 places, one step of 2 micro-batches a rank.
    parameters, trainer = one_step(pairs.Pair(target, head), folder / "ddp", 3, 2)
    if trainer.is_world_process_zero():
        assert trainer.args.world_size == 2
        contiguous = {name: tensor.contiguous() for name, tensor in parameters.items()}
        save_file(contiguous, folder / "ddp.safetensors")
