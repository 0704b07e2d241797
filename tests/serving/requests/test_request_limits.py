"""What would end the scheduler is refused; a wrong `lang` by FASTMTP's servers only."""

import re
from types import SimpleNamespace

import pytest
from sglang.srt import runtime_context
from sglang.srt.sampling.sampling_params import SamplingParams

from fastmtp_sglang.serving.requests import request_limits


def params(**fields) -> SamplingParams:
    made = SamplingParams(**fields)
    # Stop strings need a tokenizer, which nothing here does.
    made.normalize(SimpleNamespace(encode=lambda text, **_: [0], eos_token_id=2))
    return made


@pytest.mark.parametrize("algorithm", ["FASTMTP", "fastmtp", "EAGLE", None])
def test_other_servers_are_left_alone(monkeypatch, algorithm):
    spec = SimpleNamespace(speculative_algorithm=algorithm)
    context = SimpleNamespace(is_config_namespace_published=lambda name: name == "spec")
    monkeypatch.setattr(runtime_context, "get_spec", lambda: spec)
    monkeypatch.setattr(runtime_context, "get_context", lambda: context)
    refused = params(custom_params={"lang": 5})
    if algorithm and algorithm.upper() == "FASTMTP":
        with pytest.raises(ValueError, match="lang"):
            request_limits.check(None, refused, 100)
    else:
        request_limits.check(None, refused, 100)


def test_nothing_is_known_outside_a_server(monkeypatch):
    context = SimpleNamespace(is_config_namespace_published=lambda name: False)
    monkeypatch.setattr(runtime_context, "get_context", lambda: context)
    request_limits.check(None, params(custom_params={"lang": 5}), 100)


@pytest.mark.parametrize("token", [-1, 100, 10**12, 1.5, True, None, "3", [1]])
def test_token_ids_that_the_model_does_not_have(token):
    request_limits.refuse_token_ids([0, 99], 100)
    request_limits.refuse_token_ids(None, 100)
    with pytest.raises(ValueError, match=r"input_ids\[1\] is .* from 0 to 99"):
        request_limits.refuse_token_ids([5, token], 100)


def test_a_prompt_without_tokens():
    with pytest.raises(ValueError, match="has no tokens"):
        request_limits.refuse_token_ids([], 100)


def test_the_tokenizer_manager_checks_them_once(monkeypatch):
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    asked = []

    def stock(manager, obj, input_ids):
        asked.append(input_ids)

    def cannot_read(manager, obj):
        raise obj

    monkeypatch.setattr(TokenizerManager, "_validate_one_request", stock)
    monkeypatch.setattr(TokenizerManager, "_create_tokenized_object", cannot_read)
    request_limits.install()
    installed = TokenizerManager._validate_one_request
    request_limits.install()
    assert TokenizerManager._validate_one_request is installed
    manager = SimpleNamespace(model_config=SimpleNamespace(vocab_size=10))
    installed(manager, None, [9])
    with pytest.raises(ValueError, match="input_ids"):
        installed(manager, None, [10])
    assert asked == [[9]]
    for error in (re.error("unterminated"), TypeError("no"), ValueError("no")):
        with pytest.raises(ValueError, match=r"stop_regex|no"):
            TokenizerManager._create_tokenized_object(manager, error)


@pytest.mark.parametrize("custom_params", [None, {}, {"lang": None}, {"lang": "zh"}, {"x": [1]}])
def test_languages_that_pass(custom_params):
    request_limits.refuse_language(custom_params)


@pytest.mark.parametrize("lang", [["zh", "en"], {"a": 1}, 5, True, 0.5])
def test_a_language_is_a_text(lang):
    with pytest.raises(ValueError, match="lang is the name of a draft list"):
        request_limits.refuse_language({"lang": lang})


@pytest.mark.parametrize("custom_params", ["zh", ["lang"], 5, True, "x" * 9000])
def test_custom_params_are_a_map(custom_params):
    with pytest.raises(ValueError, match=r"custom_params is .* it is a map") as refused:
        request_limits.refuse_language(custom_params)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("count", [None, 0, 5, 100])
def test_logprobs_of_all_tokens_pass(count):
    request_limits.refuse_logprobs(count, 100)


@pytest.mark.parametrize("count", [-1, 101, 60000])
def test_logprobs_of_more_tokens_than_there_are(count):
    with pytest.raises(ValueError, match=f"top_logprobs_num {count} is not between 0 and 100"):
        request_limits.refuse_logprobs(count, 100)


def tokenized(**fields):
    from array import array

    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput

    values = {
        "input_text": "x",
        "input_ids": array("q", [1, 2]),
        "input_embeds": None,
        "token_type_ids": None,
        "mm_inputs": None,
        "time_stats": object(),
        "sampling_params": params(stop_regex="a+"),
        **{"return_logprob": False, "logprob_start_len": -1, "top_logprobs_num": 0},
        **{"token_ids_logprob": None, "stream": False},
    }
    return TokenizedGenerateReqInput(**values | fields)


def test_fields_of_the_right_types_pass():
    request_limits.refuse_wrong_types(tokenized(sampling_params=params(custom_params={"a": [1]})))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positional_embed_overrides", {"a": 1}),
        ("positional_embed_overrides", -1),
        ("priority", "x"),
        ("return_logprob", "yes"),
        ("session_id", 5),
    ],
)
def test_a_field_of_another_type_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} of the request has a wrong type"):
        request_limits.refuse_wrong_types(tokenized(**{field: value}))


def test_sampling_parameters_too():
    with pytest.raises(ValueError, match="sampling_params of the request has a wrong type"):
        request_limits.refuse_wrong_types(tokenized(sampling_params=params(custom_params="zh")))


def test_numbers_that_cannot_be_sent():
    with pytest.raises(ValueError, match="has a wrong type: can't serialize ints"):
        request_limits.refuse_wrong_types(tokenized(bootstrap_room=10**30))


@pytest.mark.parametrize("processor", ["no JSON", "{}", '{"callable": "80"}', "[1]"])
def test_a_logit_processor_that_cannot_be_read(processor):
    with pytest.raises(ValueError, match="custom_logit_processor cannot be read"):
        request_limits.refuse_logit_processor(processor)


def test_a_logit_processor_that_can():
    from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

    for processor in (None, DisallowedTokensLogitsProcessor.to_str()):
        request_limits.refuse_logit_processor(processor)
