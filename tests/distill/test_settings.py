"""What a resumed run must share, in the words of the command line.

Alone: pytest tests/distill/test_settings.py
"""

import pytest

from fastmtp_sglang.distill.records import Sampling
from fastmtp_sglang.distill.settings import Settings, check_sampling, differences
from fastmtp_sglang.errors import FastMTPError


@pytest.fixture
def settings() -> Settings:
    sampling = Sampling(temperature=0.6, top_k=20, top_p=0.95, max_new_tokens=64)
    return Settings(
        model="smollm2",
        tokenizer_fingerprint="sha256:0",
        chat_template_sha256="0",
        prompts=[("p", "rows 1")],
        sampling=sampling,
        prompt_sampling=sampling,
        prompt_starts=["Why"],
        turns=None,
        samples=1,
        system=None,
        keep_truncated=True,
        seed=0,
    )


CHANGES = [
    ("model", "other", "--model was 'smollm2' and is 'other'"),
    ("tokenizer_fingerprint", "sha256:1", "the tokenizer of --model was"),
    ("chat_template_sha256", "1", "the chat template of --model was"),
    ("prompts", [("q", "rows 2")], "--prompts or --self-prompt was"),
    ("prompt_sampling", None, "--prompt-temperature, --prompt-top-k, --prompt-top-p, --prompt-max"),
    ("prompt_starts", [], "--prompt-starts was ['Why']"),
    ("turns", 2, "--turns was None and is 2"),
    ("samples", 2, "--samples was 1 and is 2"),
    ("system", "Be brief.", "--system was None and is 'Be brief.'"),
    ("keep_truncated", False, "--keep-truncated was True and is False"),
    ("seed", 1, "--seed was 0 and is 1"),
]


@pytest.mark.parametrize(("field", "value", "told"), CHANGES)
def test_what_differs_is_told_by_its_flag(settings, field, value, told):
    (found,) = differences(settings, settings.model_copy(update={field: value}))
    assert found.startswith(told)


def test_sampling_is_one_of_them_and_no_field_is_forgotten(settings):
    assert {field for field, _, _ in CHANGES} | {"sampling"} == set(Settings.model_fields)
    warmer = settings.sampling.model_copy(update={"temperature": 0.9})
    (found,) = differences(settings, settings.model_copy(update={"sampling": warmer}))
    assert found.startswith("--temperature, --top-k, --top-p, --max-new-tokens was")


def test_settings_read_back_from_a_manifest_are_the_same(settings):
    read = Settings.model_validate_json(settings.model_dump_json())
    assert differences(read, settings) == []
    # Of a manifest before there were given words.
    older = settings.model_dump(exclude={"prompt_starts"})
    assert Settings.model_validate(older).prompt_starts == []


def sampling(**changes) -> Sampling:
    fields = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "max_new_tokens": 64}
    return Sampling(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0}, {"temperature": 10}, {"top_k": 1}, {"top_k": -1}, {"top_p": 1},
     {"top_p": 1e-9}, {"max_new_tokens": 1}],
)  # fmt: skip
def test_values_at_the_edge_are_taken(changes):
    check_sampling(sampling(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperature": -0.1}, r"temperature -0\.1: must be from 0 \(greedy\) to 10"),
        ({"temperature": 10.1}, r"temperature 10\.1: must be"),
        ({"temperature": float("nan")}, "temperature nan: must be"),
        ({"temperature": float("inf")}, "temperature inf: must be"),
        ({"top_k": 0}, "top-k 0: must be at least 1, or -1 for all"),
        ({"top_k": -2}, "top-k -2: must be"),
        ({"top_p": 0}, r"top-p 0\.0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, r"top-p 1\.1: must be"),
        ({"top_p": float("nan")}, "top-p nan: must be"),
        ({"max_new_tokens": 0}, "max-new-tokens 0: must be at least 1"),
    ],
)
def test_values_beyond_it_are_refused_by_their_flag(changes, reason):
    with pytest.raises(FastMTPError, match=f"^--{reason}"):
        check_sampling(sampling(**changes))
    # What the flags of self-written prompts are called.
    reason = reason.replace("max-new-tokens", "max-tokens")
    with pytest.raises(FastMTPError, match=f"^--prompt-{reason}"):
        check_sampling(sampling(**changes), "prompt-")
