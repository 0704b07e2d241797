"""New weights for a running server: the target takes them, its head keeps its own.

SGLang hands what it is given to the target and then to the head, and finds out while loading
whether it fits. Here a folder is compared with the checkpoint that is served before anything is
loaded, and a failure leaves the model as it was. Tensors that are sent reach both models, and the
head picks its own out (`drafting.head_model`, `drafting.native_head`); the embedding and the
lm_head are the target's tensors anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import MIMO_LAYER
from fastmtp_sglang.serving.requests.control_calls import UnusableWeightsError

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager,
    )
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]

# Of the checkpoint that each model was started from; the folder may be gone when an update comes.
_SERVED: WeakKeyDictionary[ModelConfig, Shapes] = WeakKeyDictionary()


def tensor_shapes(config: ModelConfig, path: str, load_format: str) -> Shapes:
    """Read names and shapes of a checkpoint's tensors, without their data.

    Raises:
        FastMTPError: there is none at `path`, or its files cannot be read in this format.
    """
    from safetensors import safe_open
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader.loader import DefaultModelLoader, get_model_loader

    try:
        loader = get_model_loader(LoadConfig(load_format=load_format), config)
        if not isinstance(loader, DefaultModelLoader):
            raise ValueError(f"load_format {load_format} does not read weights from files")
        _, files, is_safetensors = loader._prepare_weights(path, config.revision, True)
        shapes: Shapes = {}
        for file in files:
            if is_safetensors:
                with safe_open(file, "pt") as tensors:
                    names = list(tensors.keys())
                    shapes |= {n: tuple(tensors.get_slice(n).get_shape()) for n in names}
            else:
                loaded = torch.load(file, map_location="meta", weights_only=True)
                shapes |= {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    except Exception as error:
        raise FastMTPError(
            f"model_path {path} (load_format {load_format}) cannot be read: {error}. "
            "Nothing was changed."
        ) from error
    return shapes


def remember(config: ModelConfig) -> Shapes:
    """Return the tensors of the checkpoint that a model was started from; read once.

    Empty where they were not read from such files; then nothing is known to be missing later.
    """
    if config not in _SERVED:
        try:
            _SERVED[config] = tensor_shapes(config, config.model_path, "auto")
        except FastMTPError:
            _SERVED[config] = {}
    return _SERVED[config]


def refuse_other_tensors(path: str, served: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds all of the target that is served, in the same shapes.

    Args:
        path: of the checkpoint, for the message.
        served: shapes by name of the target's own; those of a native MTP layer need not be given.
        given: shapes by name of the new one; it may hold more.

    Raises:
        FastMTPError: naming the first tensors that are missing or differ.
    """
    needed = {name: shape for name, shape in served.items() if not name.startswith(MIMO_LAYER)}
    missing = sorted(needed.keys() - given.keys())
    if missing:
        raise FastMTPError(
            f"model_path {path} lacks {len(missing)} of the target's {len(needed)} tensors "
            f"({', '.join(missing[:3])}): it is no checkpoint of this target. Nothing was changed."
        )
    for name, shape in needed.items():
        if given[name] != shape:
            raise FastMTPError(
                f"model_path {path} holds {name} of shape {given[name]}, and the target's is "
                f"{shape}: it is no checkpoint of this target. Nothing was changed."
            )


def install(*, on_a_cpu: bool) -> None:
    """Let SGLang's scheduler update weights so, in this process; idempotent."""
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager as Manager,
    )
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

    if WeightUpdater.update_weights_from_disk.__module__ == __name__:
        return
    from_disk = WeightUpdater.update_weights_from_disk
    from_tensor = Manager.update_weights_from_tensor

    def update_weights_from_disk(
        updater: WeightUpdater, model_path: str, load_format: str, **options: Any
    ) -> tuple[bool, str]:
        config = updater.model_config
        if config.is_draft_model and not _is_native(updater):
            return True, "Succeeded to update model weights; the head keeps its own."
        before = config.model_path
        try:
            if not config.is_draft_model:
                given = tensor_shapes(config, model_path, load_format)
                refuse_other_tensors(model_path, remember(config), given)
            success, message = from_disk(updater, model_path, load_format, **options)
        except FastMTPError as error:
            success, message = False, str(error)
        except Exception as error:
            # SGLang goes back to the folder that it has just failed to load.
            logger.exception("Weights of %s could not be loaded.", model_path)
            config.model_path = before
            message = f"model_path {model_path} could not be loaded: {error}"
            try:
                restored, why = from_disk(updater, before, "auto", **options)
            except Exception as worse:
                restored, why = False, str(worse)
            if not restored:
                raise UnusableWeightsError(f"{message}; nor {before}: {why}") from error
            success = False
        if not success:
            config.model_path = before
        return success, message

    def update_weights_from_tensor(manager: SchedulerWeightUpdaterManager, recv_req: Any) -> Any:
        if on_a_cpu and recv_req.load_format == "direct":
            raise FastMTPError(
                "load_format direct writes into the weights as they lie in memory, which the CPU "
                "platform has repacked. Leave it out."
            )
        return from_tensor(manager, recv_req)

    WeightUpdater.update_weights_from_disk = update_weights_from_disk
    Manager.update_weights_from_tensor = update_weights_from_tensor


def _is_native(updater: WeightUpdater) -> bool:
    """Whether a draft model's weights lie in the target's own files."""
    from fastmtp_sglang.serving.drafting.head_model import FastMTPHead

    return not isinstance(updater.get_model(), FastMTPHead)
