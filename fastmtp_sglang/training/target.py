"""The frozen target: embedding and output layer, and its hidden states after the final norm.

Training with stored hidden states needs only two tensors of the checkpoint; the whole model is
loaded when it has to run. All of it is under no_grad, in the dtype of the checkpoint unless told
otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.functional import embedding
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.tensors import read_header, tensor_files
from fastmtp_sglang.head.config import embedding_scale
from fastmtp_sglang.models.config import checkpoint_config

_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT = "lm_head.weight"

# Targets run with documents of similar length side by side; this many tokens, padding included.
_TOKENS_PER_FORWARD = 4096

# Of each tensor: training changes all of a tensor, and 15 GB would take half a minute to read.
_DIGEST_BYTES = 4096


class FrozenTarget:
    """A target checkpoint that is never trained.

    Args:
        directory: a transformers checkpoint with safetensors files.
        dtype: of embedding, output layer and model; None for the checkpoint's.
        device: where all of it lives.

    Raises:
        FastMTPError: the directory is no such checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.directory = directory
        self.device = torch.device(device)
        self.config = target_config(directory)
        tensors = load_tensors(directory, [_EMBEDDING, _OUTPUT], optional={_OUTPUT})
        self.dtype = dtype or tensors[_EMBEDDING].dtype
        self._embedding = tensors[_EMBEDDING].to(self.device, self.dtype)
        self._scale = embedding_scale(self.config)
        tied = _OUTPUT not in tensors
        self.output_weight = (
            self._embedding if tied else tensors[_OUTPUT].to(self.device, self.dtype)
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., D] of ids, scaled as the target scales them."""
        rows = embedding(ids, self._embedding)
        # Rounded to the dtype before it is multiplied with, as transformers does.
        return rows if self._scale == 1.0 else rows * rows.new_tensor(self._scale)

    @cached_property
    def model(self) -> Any:
        """The whole model, loaded on first use."""
        # The checkpoint of a target with an MTP layer holds tensors that the model does not.
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.directory, config=self.config, dtype=self.dtype
            )
        finally:
            logging.set_verbosity(verbosity)
        return model.to(self.device).eval().requires_grad_(False)

    def unload(self) -> None:
        """Drop the whole model, where only embedding and output layer are used from now on."""
        self.__dict__.pop("model", None)

    def packed_hidden_states(self, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Hidden states [S, D] of documents packed end to end, ids int64 [S].

        Documents are padded on the right, which a causal model's earlier positions do not see.
        """
        return self._packed(ids, lengths, self._last_states)

    def packed_streams(
        self, ids: torch.Tensor, lengths: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`packed_hidden_states`, and [S, D] the residual streams that the last layer reads."""
        streams: list[torch.Tensor] = []

        def both(padded: torch.Tensor) -> torch.Tensor:
            return torch.cat((self._last_states(padded), streams.pop()), dim=-1)

        last = self.model.model.layers[-1]
        hook = last.register_forward_pre_hook(lambda _, given: streams.append(given[0]))
        try:
            states, read = self._packed(ids, lengths, both).chunk(2, dim=1)
        finally:
            hook.remove()
        return states, read

    def _last_states(self, padded: torch.Tensor) -> torch.Tensor:
        # `model.model` is the decoder: its last hidden state is after the final norm.
        states: torch.Tensor = self.model.model(padded, use_cache=False).last_hidden_state
        return states

    @torch.no_grad()
    def _packed(
        self,
        ids: torch.Tensor,
        lengths: list[int],
        compute: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """What `compute` makes of documents [n, T] side by side, end to end again."""
        documents = ids.split(lengths)
        order = sorted(range(len(documents)), key=lambda i: lengths[i], reverse=True)
        results: list[torch.Tensor] = [torch.empty(0)] * len(documents)
        while order:
            longest = max(1, lengths[order[0]])
            group, order = (
                order[: max(1, _TOKENS_PER_FORWARD // longest)],
                order[max(1, _TOKENS_PER_FORWARD // longest) :],
            )
            padded = ids.new_zeros(len(group), longest)
            for row, document in zip(padded, group, strict=True):
                row[: lengths[document]] = documents[document]
            for row, document in zip(compute(padded), group, strict=True):
                results[document] = row[: lengths[document]]
        return torch.cat(results)

    @cached_property
    def digest(self) -> str:
        """See `target_digest`."""
        return target_digest(self.directory)


def target_digest(directory: Path) -> str:
    """What identifies a target's weights: its configuration, and the beginning of every tensor.

    Raises:
        FastMTPError: the directory is no checkpoint.
    """
    files = checkpoint_files(directory)
    sums = hashlib.sha256(_config_file(directory).read_bytes())
    for path in sorted(set(files.values())):
        header, begin = read_header(path)
        with path.open("rb") as opened:
            for name in sorted(name for name, holder in files.items() if holder == path):
                start, end = header[name]["data_offsets"]
                opened.seek(begin + start)
                sums.update(name.encode() + opened.read(min(end - start, _DIGEST_BYTES)))
    return f"sha256:{sums.hexdigest()}"


def target_config(directory: Path) -> PreTrainedConfig:
    """A target's configuration, see `checkpoint_config`.

    Raises:
        FastMTPError: `directory` holds no config.json, or one that transformers cannot read.
    """
    path = _config_file(directory)
    try:
        return checkpoint_config(directory)
    except Exception as error:  # transformers raises anything from KeyError to ImportError here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FastMTPError(
            f"{path} cannot be read ({reason}): give a transformers checkpoint directory."
        ) from error


def _config_file(directory: Path) -> Path:
    path = directory / "config.json"
    if not path.is_file():
        raise FastMTPError(
            f"target {directory} holds no config.json: give a transformers checkpoint directory."
        )
    return path


def checkpoint_files(directory: Path) -> dict[str, Path]:
    """Name of every tensor of a checkpoint -> the safetensors file that holds it.

    Raises:
        FastMTPError: the directory holds no safetensors file, or a damaged one.
    """
    files = tensor_files(directory)
    if not files:
        raise FastMTPError(f"{directory} holds no .safetensors file: give a checkpoint directory.")
    return files


def load_tensors(
    directory: Path, names: list[str], *, optional: set[str] | frozenset[str] = frozenset()
) -> dict[str, torch.Tensor]:
    """Read some tensors of a checkpoint.

    Raises:
        FastMTPError: one of `names` is neither there nor `optional`.
    """
    files = checkpoint_files(directory)
    missing = [name for name in names if name not in files and name not in optional]
    if missing:
        raise FastMTPError(f"target {directory} has no tensor {', '.join(missing[:3])}.")
    tensors = {}
    for name in names:
        if name in files:
            with safe_open(files[name], "pt") as opened:
                tensors[name] = opened.get_tensor(name)
    return tensors
