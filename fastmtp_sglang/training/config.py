"""The configuration of a training run: one YAML file, overridden by `--set key=value`.

An unknown key is an error that names the nearest known one. The defaults are FastMTP's recipe for a
head that was trained before (arXiv 2509.18362, section 4.1).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastmtp_sglang.errors import FastMTPError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HeadSection(_Section):
    """Where the head starts.

    Attributes:
        start: `scratch`, `fitted` (scratch, its layer reads what the last one does: `fitted`),
            `native` (the target's MTP layer) or a head directory.
        num_steps: K.
    """

    start: str = "scratch"
    num_steps: int = Field(default=3, ge=1)


class DataSection(_Section):
    """What is learned.

    Attributes:
        train: record files or folders of shards (`fastmtp distill`).
        max_length: tokens of a document; what is longer loses its end.
        offline: folder of stored hidden states, made if missing; None runs the target online.
    """

    train: list[Path]
    max_length: int = Field(default=4096, ge=3)
    offline: Path | None = None


class VocabularySection(_Section):
    """Rows of the output layer that the loss sees.

    Attributes:
        output: `full`, `data` (the ids that are trained on) or a draft vocabulary file.
        lists: of a file, over what a token is scored: `own`, the list of its text's language, as
            in serving, or `union`, all lists joined.
    """

    output: str = "full"
    lists: Literal["own", "union"] = "own"


class LossSection(_Section):
    """`cross_entropy` * CE + `kl` * KL(target || head) of each step, weighted with `beta`."""

    beta: float = Field(default=0.6, gt=0)
    cross_entropy: float = Field(default=1.0, ge=0)
    kl: float = Field(default=0.0, ge=0)
    kl_temperature: float = Field(default=1.0, gt=0)
    kernel: Literal["auto", "chunked", "liger"] = "auto"

    @model_validator(mode="after")
    def _some_loss(self) -> LossSection:
        if not self.cross_entropy and not self.kl:
            raise ValueError("cross_entropy and kl are both 0: nothing would be learned")
        if self.kernel == "liger" and self.kl:
            raise ValueError("kernel liger has no kl; use kernel chunked or kl 0")
        return self


class OptimizerSection(_Section):
    """AdamW with warm-up and cosine decay; `batch_size` documents make one step, on all ranks."""

    learning_rate: float = Field(default=5e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=64, ge=1)
    documents_per_forward: int = Field(default=8, ge=1)
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    bf16: bool = False
    seed: int = 0


class ValidationSection(_Section):
    """What the head is measured on.

    Attributes:
        data: record files that are never trained on; without any, `fraction` of the conversations
            of the training data is held out.
        documents: held-out documents for the loss and teacher-forced acceptance, at most.
        prompts: held-out prompts that the target continues greedily, at most.
        max_new_tokens: length of such a continuation.
        every: optimizer steps between two validations; None for once an epoch.
        draft_vocabulary: also measure with this file; None for what `vocabulary.output` names.
    """

    data: list[Path] = []
    fraction: float = Field(default=0.02, ge=0, lt=1)
    documents: int = Field(default=200, ge=1)
    prompts: int = Field(default=32, ge=1)
    max_new_tokens: int = Field(default=128, ge=8)
    every: int | None = Field(default=None, ge=1)
    draft_vocabulary: Path | None = None


class TrainConfig(_Section):
    """All of a run.

    Attributes:
        target: checkpoint directory, or the name of a built-in model.
        output: folder of checkpoints, logs and, at the end, `head`.
        save_minutes: between two checkpoints. What a kill costs is at most this, one step, one
            validation and the writing itself; 0 saves every step.
        keep_checkpoints: older ones are removed.
        log_every: optimizer steps between two log lines.
    """

    target: str
    output: Path
    head: HeadSection = HeadSection()
    data: DataSection
    vocabulary: VocabularySection = VocabularySection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    validation: ValidationSection = ValidationSection()
    save_minutes: float = Field(default=3.0, ge=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] = MappingProxyType({}),
) -> TrainConfig:
    """Read a YAML file and apply overrides such as `optimizer.learning_rate=1e-3`.

    `flags` are values by their keys that are taken as they are, last: nobody writes YAML where a
    path is asked for.

    Raises:
        FastMTPError: the file is missing or no mapping, a key is unknown or a value invalid.
    """
    try:
        fields = _yaml(path.read_bytes(), f"configuration {path}")
    except OSError as error:
        raise FastMTPError(f"configuration {path} cannot be read: {error.strerror}.") from error
    if not isinstance(fields, dict):
        raise FastMTPError(f"configuration {path} must be a mapping of keys, see configs/train.")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise FastMTPError(f"--set {override}: write key=value, such as optimizer.epochs=1.")
        _set(fields, key.split("."), _yaml(value, f"--set {override}"), override)
    for key, value in flags.items():
        _set(fields, key.split("."), value, key)
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        raise FastMTPError(f"configuration {path}: {_explain(error)}") from error


def _yaml(text: bytes | str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month
        words = " ".join(str(error).split())
        raise FastMTPError(f"{name} is not valid YAML: {words}") from error


def _set(fields: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        inner = fields.setdefault(key, {})
        if not isinstance(inner, dict):
            raise FastMTPError(f"--set {override}: {key} is a value, not a section.")
        fields = inner
    fields[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    """The first problem in one sentence; unknown keys come first, they explain missing ones."""
    problems = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    first = problems[0]
    name = ".".join(str(part) for part in first["loc"]) or "configuration"
    if first["type"] != "extra_forbidden":
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        return f"{name}: {first['msg'].removeprefix('Value error, ')}{given}."
    known = sorted(_keys(TrainConfig))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    # The same key in another section is nearer than a similar one beside it.
    moved = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"{name} is no key; did you mean {(moved or near)[0]}?"


def _keys(section: type[BaseModel]) -> list[str]:
    names = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += [f"{name}.{key}" for key in _keys(inner)]
        else:
            names.append(name)
    return names
