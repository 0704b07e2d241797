"""New weights for a running server: it then answers, and drafts, as one started with them.

The targets say texts that are known in advance, so an answer tells whose weights gave it. After
each test the server is back at its first weights.

Run alone: pytest tests/served/test_weight_updates.py (starts two tiny servers).
"""

import base64
import pickle
import threading
from pathlib import Path

import chains
import httpx
import pytest
import torch
from client import TIMEOUT, acceptance_length, generate
from safetensors.torch import load_file

from fastmtp_sglang.servers.server_process import free_port

LANGUAGES = ("en", "zh", "ru")


def post(url: str, path: str, **body) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, timeout=TIMEOUT)


def from_disk(url: str, path: Path, **options) -> httpx.Response:
    return post(url, "/update_weights_from_disk", model_path=str(path), **options)


def assert_says(url: str, successor: torch.Tensor) -> None:
    """Answers follow `successor`, and so do nearly all drafts: the head shares the new weights."""
    answers = []
    for language in LANGUAGES:
        prompt = chains.prompt(language)
        answers.append(generate(url, prompt, max_new_tokens=16))
        expected, last = [], prompt[-1]
        for _ in range(16):
            last = int(successor[last])
            expected.append(last)
        assert answers[-1].ids == tuple(expected)
    assert acceptance_length(answers) > 3


@pytest.fixture
def chains_routed(servers, checkpoints):
    url = servers("chains-routed")
    assert_says(url, chains.SUCCESSOR)
    yield url
    assert from_disk(url, checkpoints.chains).status_code == 200
    assert_says(url, chains.SUCCESSOR)


@pytest.mark.parametrize("options", [{}, {"abort_all_requests": True}])
def test_from_a_folder(chains_routed, checkpoints, options):
    assert from_disk(chains_routed, checkpoints.chains, **options).status_code == 200
    assert_says(chains_routed, chains.SUCCESSOR)
    assert from_disk(chains_routed, checkpoints.reversed_chains, **options).status_code == 200
    assert_says(chains_routed, chains.PREDECESSOR)


def test_a_folder_of_something_else_changes_nothing(chains_routed, checkpoints, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for folder, reason in (
        (checkpoints.chains_head, "lacks 27 of the target's 27 tensors"),
        (checkpoints.smollm2, "it is no checkpoint of this target"),
        (tmp_path, "Cannot find any model weights"),
        (tmp_path / "nowhere", "cannot be read"),
    ):
        refused = from_disk(chains_routed, folder)
        assert refused.status_code == 400
        assert reason in refused.text
        assert_says(chains_routed, chains.SUCCESSOR)
    refused = from_disk(chains_routed, checkpoints.chains, load_format="nonsense")
    assert refused.status_code == 400
    assert "nonsense" in refused.text


def new_lm_head(checkpoints) -> list[tuple[str, torch.Tensor]]:
    """The only tensor in which the two targets differ."""
    tensors = load_file(checkpoints.reversed_chains / "model.safetensors")
    return [("lm_head.weight", tensors["lm_head.weight"])]


def packed(tensors: list[tuple[str, torch.Tensor]]) -> list[str]:
    """What the one rank is sent."""
    return [base64.b64encode(pickle.dumps(tensors)).decode()]


@pytest.mark.parametrize("selector", [{}, {"selector": "target"}])
def test_from_tensors(chains_routed, checkpoints, selector):
    url = chains_routed
    body = {"serialized_named_tensors": packed(new_lm_head(checkpoints)), **selector}
    assert post(url, "/update_weights_from_tensor", **body).status_code == 400  # not begun
    assert post(url, "/begin_weight_update", **selector).status_code == 200
    other = {"serialized_named_tensors": packed([("lm_head.weight", torch.zeros(3, 3))])}
    assert post(url, "/update_weights_from_tensor", **other).status_code == 400
    assert post(url, "/update_weights_from_tensor", **body).status_code == 200
    assert post(url, "/end_weight_update").status_code == 200
    assert_says(url, chains.PREDECESSOR)


def test_from_another_process(chains_routed, checkpoints):
    """As a trainer sends them: this process is rank 0 of a group of two."""
    from sglang.srt.utils import init_custom_process_group

    url, port, answers = chains_routed, free_port(), {}
    group = {"group_name": "trainer", "backend": "gloo"}

    def ask(path: str, **body) -> threading.Thread:
        def run() -> None:
            answers[path] = post(url, path, **body)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    joining = ask(
        "/init_weights_update_group",
        master_address="127.0.0.1",
        master_port=port,
        rank_offset=1,
        world_size=2,
        **group,
    )
    ours = init_custom_process_group(
        init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=0, **group
    )
    joining.join()
    assert post(url, "/begin_weight_update").status_code == 200
    ((name, tensor),) = new_lm_head(checkpoints)
    sending = ask(
        "/update_weights_from_distributed",
        names=[name],
        dtypes=["float32"],
        shapes=[list(tensor.shape)],
        group_name="trainer",
    )
    torch.distributed.broadcast(tensor, src=0, group=ours)
    sending.join()
    assert post(url, "/end_weight_update").status_code == 200
    assert post(url, "/destroy_weights_update_group", group_name="trainer").status_code == 200
    assert {path: answer.status_code for path, answer in answers.items()} == {
        "/init_weights_update_group": 200,
        "/update_weights_from_distributed": 200,
    }
    assert_says(url, chains.PREDECESSOR)


def test_a_native_layer_stays_where_a_folder_has_none(servers, checkpoints):
    url, prompt = servers("mimo-native"), "Once upon a time"
    before = generate(url, prompt, max_new_tokens=24)
    assert before.meta["spec_num_correct_drafts"] > 0
    for folder in (checkpoints.plain, checkpoints.mimo):
        assert from_disk(url, folder).status_code == 200
        after = generate(url, prompt, max_new_tokens=24)
        assert after.visible == before.visible
        assert after.meta["spec_num_correct_drafts"] == before.meta["spec_num_correct_drafts"]
