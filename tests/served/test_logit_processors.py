"""Custom logit processors see, and do, what they would token by token.

Run alone: pytest tests/served/test_logit_processors.py (starts three tiny servers).
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from client import Answer, acceptance_length, assert_equal, generate
from sglang.srt.sampling.custom_logit_processor import (
    DisallowedTokensLogitsProcessor,
    ThinkingBudgetLogitProcessor,
)

START, END, NEW_LINE = 11, 12, 13

# SGLang sends a processor as its code, where that is of no module.
_OWN = {"__name__": "__main__"}
exec(
    """
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

class EveryThird(CustomLogitProcessor):
    '''Remembers in its parameters how often it was called, and never lets a token come twice.'''

    def __call__(self, logits, custom_param_list=None):
        for row, params in zip(logits, custom_param_list):
            params["calls"] = params.get("calls", 0) + 1
            tokens = list(params["__req__"].output_ids)
            assert params["calls"] == len(tokens) + 1
            row[tokens] = float("-inf")
            if params["calls"] % 3 == 0:
                row[: params["below"]] = float("-inf")
        return logits
""",
    _OWN,
)
BUDGET = type(
    "Budget",
    (ThinkingBudgetLogitProcessor,),
    {
        "THINKING_START_TOKEN_ID": START,
        "THINKING_END_TOKEN_ID": END,
        "NEW_LINE_TOKEN_ID": NEW_LINE,
        "__module__": "__main__",
    },
)
CASES = {
    "thinking budget": (BUDGET, lambda i: {"thinking_budget": i % 7}),
    "disallowed tokens": (DisallowedTokensLogitsProcessor, lambda _: {"token_ids": [5, 6, 7, 300]}),
    "one with a memory": (_OWN["EveryThird"], lambda i: {"below": 50 * i}),
}


def answers(url: str, case: str) -> list[Answer]:
    """24 answers at once, every fourth without a processor, some sampled with a seed."""
    processor, params = CASES[case]

    def ask(index: int) -> Answer:
        own = {"processor": processor.to_str(), "custom_params": params(index)}
        sampled = {"temperature": 0.8, "top_p": 0.9, "sampling_seed": index}
        return generate(
            url,
            # The start of a thought, as a prompt may end with it.
            [*range(20, 24 + index), START],
            max_new_tokens=14,
            ignore_eos=True,
            logit_bias={"9": 1.0},
            **(own if index % 4 else {}),
            **(sampled if index % 3 else {}),
        )

    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(ask, range(24)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["mimo-native", "mimo-tree"])
def test_as_token_by_token(servers, kind, case):
    base = answers(servers("mimo-synchronous"), case)
    free = [answer for index, answer in enumerate(base) if index % 4 == 0]
    bound = [answer for index, answer in enumerate(base) if index % 4]
    if case == "thinking budget":
        assert all(END in answer.ids[:9] for answer in bound)
        assert not any(END in answer.ids[:9] for answer in free)
    elif case == "one with a memory":
        assert all(len(set(answer.ids)) == 14 for answer in bound)
    fast = answers(servers(kind), case)
    assert_equal(fast, base)
    assert acceptance_length(fast) > 1.2
