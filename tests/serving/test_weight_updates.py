"""A folder is compared with what is served before anything is loaded, and a failure is undone.

Alone: pytest tests/serving/test_weight_updates.py
"""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import weight_updates
from fastmtp_sglang.serving.requests.control_calls import UnusableWeightsError
from fastmtp_sglang.serving.weight_updates import refuse_other_tensors, tensor_shapes

SERVED = {"lm_head.weight": (8, 4), "model.norm.weight": (4,), "model.mtp_layers.0.a": (2,)}


@pytest.fixture(autouse=True)
def outside_a_server(monkeypatch):
    """SGLang's loader asks for the server's arguments, and does without."""
    monkeypatch.setattr("sglang.srt.model_loader.loader.get_server_args", lambda: None)


class Config:
    """What is read of SGLang's ModelConfig."""

    revision, quantization, is_draft_model = None, None, False

    def __init__(self, path):
        self.model_path = str(path)


def folder(path, shapes=SERVED):
    path.mkdir(exist_ok=True)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return path


def test_shapes_are_read_without_the_data(tmp_path):
    assert tensor_shapes(Config(tmp_path), str(folder(tmp_path / "a")), "auto") == SERVED
    (tmp_path / "pt").mkdir()
    torch.save({"x": torch.zeros(3, 2)}, tmp_path / "pt" / "pytorch_model.bin")
    assert tensor_shapes(Config(tmp_path), str(tmp_path / "pt"), "auto") == {"x": (3, 2)}


@pytest.mark.parametrize("load_format", ["auto", "nonsense", "dummy", "gguf"])
def test_a_folder_that_cannot_be_read(tmp_path, load_format):
    with pytest.raises(FastMTPError, match=f"load_format {load_format}.*Nothing was changed"):
        tensor_shapes(Config(tmp_path), str(tmp_path), load_format)


def test_a_cut_file(tmp_path):
    file = folder(tmp_path / "a") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(FastMTPError, match="cannot be read"):
        tensor_shapes(Config(tmp_path), str(file.parent), "auto")


def test_more_is_taken_and_a_native_layer_may_be_missing():
    given = {"lm_head.weight": (8, 4), "model.norm.weight": (4,), "more": (1,)}
    refuse_other_tensors("p", SERVED, given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"input_proj.weight": (4, 8)}, "lacks 2 of the target's 2 tensors (lm_head.weight, model"),
        ({"lm_head.weight": (8, 4)}, "lacks 1 of the target's 2 tensors (model.norm.weight)"),
        (
            SERVED | {"lm_head.weight": (9, 4)},
            "lm_head.weight of shape (9, 4), and the target's is",
        ),
    ],
)
def test_what_is_refused(given, reason):
    with pytest.raises(FastMTPError) as refused:
        refuse_other_tensors("p", SERVED, given)
    assert reason in str(refused.value)


@pytest.fixture
def updater(monkeypatch, tmp_path):
    """An updater of a served model; SGLang's part of it, `load`, is set by each test."""
    made = SimpleNamespace(loaded=[], broken=set())

    def stock(self, model_path, load_format, **options):
        self.model_config.model_path = model_path
        made.loaded.append(model_path)
        if model_path in made.broken:
            raise RuntimeError("cannot be loaded")
        return True, "loaded"

    for owner, name in (
        (WeightUpdater, "update_weights_from_disk"),
        (SchedulerWeightUpdaterManager, "update_weights_from_tensor"),
    ):
        monkeypatch.setattr(owner, name, stock)
    weight_updates.install(on_a_cpu=True)
    weight_updates.install(on_a_cpu=True)
    made.served, made.new = folder(tmp_path / "served"), folder(tmp_path / "new")
    made.model_config = Config(made.served)
    weight_updates.remember(made.model_config)
    made.update = lambda path: WeightUpdater.update_weights_from_disk(made, str(path), "auto")
    return made


def test_a_good_folder_is_loaded_even_when_the_first_one_is_gone(updater):
    (updater.served / "model.safetensors").unlink()
    assert updater.update(updater.new) == (True, "loaded")
    assert updater.loaded == [str(updater.new)]


def test_another_folder_is_not(updater, tmp_path):
    success, reason = updater.update(folder(tmp_path / "other", {"x": (1,)}))
    assert not success
    assert "lacks 2" in reason
    assert updater.loaded == []
    assert updater.model_config.model_path == str(updater.served)


def test_a_failure_is_undone(updater):
    updater.broken = {str(updater.new)}
    success, reason = updater.update(updater.new)
    assert not success
    assert "could not be loaded: cannot be loaded" in reason
    assert updater.loaded == [str(updater.new), str(updater.served)]
    assert updater.model_config.model_path == str(updater.served)


def test_a_failure_that_cannot_be_undone_is_no_answer(updater):
    updater.broken = {str(updater.new), str(updater.served)}
    with pytest.raises(UnusableWeightsError):
        updater.update(updater.new)


def test_memory_that_was_repacked_is_not_written_to(updater):
    call = SimpleNamespace(load_format="direct")
    with pytest.raises(FastMTPError, match="load_format direct"):
        SchedulerWeightUpdaterManager.update_weights_from_tensor(updater, call)
