"""The language of a run of tokens, from how many tokens of each script it holds.

Pure torch functions without host reads or data-dependent shapes: the serving router runs them on
device tensors, one row a request, and the builder runs the same ones on text, so that a list is
counted on the tokens that it will be used for. A state is float32 [..., NUM_SCRIPTS]: the tokens
seen per script, whose weight halves every HALF_LIFE tokens.
"""

import torch

from fastmtp_sglang.vocabulary.scripts import Script

NUM_SCRIPTS = len(Script)

_LANGUAGE_OF_SCRIPT = {
    Script.LATIN: "en",
    Script.HAN: "zh",
    Script.KANA: "ja",
    Script.HANGUL: "ko",
    Script.CYRILLIC: "ru",
    Script.ARABIC: "ar",
    Script.DEVANAGARI: "hi",
    Script.GREEK: "el",
    Script.HEBREW: "he",
    Script.THAI: "th",
    Script.BENGALI: "bn",
    Script.TAMIL: "ta",
    Script.TELUGU: "te",
}
# What detection can answer. A script stands for its most used language: French detects as "en",
# Ukrainian as "ru", and a vocabulary file says by its routes which list that means.
LANGUAGES: tuple[str, ...] = (*_LANGUAGE_OF_SCRIPT.values(), "code")
UNDECIDED = -1

# With 32, a request that switches from Latin to another script is re-routed after 19 tokens, and
# one that switches to Latin after 51 (see LATIN_WEIGHT).
HALF_LIFE = 32
# Tokens with letters needed before a state decides anything: fewer are a name or a unit.
MIN_EVIDENCE = 4.0
# Text in any language is full of Latin names, formulas and identifiers, while English text holds
# little of other scripts: Latin must be twice as frequent as another script to win over it.
LATIN_WEIGHT = 0.5
# Chinese has no kana; in Japanese about half of the characters are kana. Quoted words stay below.
MIN_KANA_SHARE = 0.1
# Tokens of code signs per Latin token. Prose has 0.00 to 0.05 (mt_bench, rag, summarization),
# source files 0.4 to 1.1: Python, C++, JavaScript and CSS from installed packages, counted with
# tekken and with SmolLM2's tokenizer. At 0.25, about 85 % of the tokens of Python files and 98 % of
# CUDA files fall to code, and none of articles. LaTeX (0.28) falls on both sides, alike in builder
# and router.
MIN_CODE_SIGNS = 0.25


def language_of_script() -> torch.Tensor:
    """Return the language that each script stands for: int64 [NUM_SCRIPTS], -1 for none."""
    languages = [_LANGUAGE_OF_SCRIPT.get(script) for script in Script]
    return torch.tensor([LANGUAGES.index(name) if name else UNDECIDED for name in languages])


def count_scripts(
    token_scripts: torch.Tensor, token_ids: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Count the tokens of each script.

    Args:
        token_scripts: int8 [vocab_size] on the device of `token_ids`.
        token_ids: Integer [..., n]. Ids outside the vocabulary (multimodal placeholders) count as
            neutral.
        valid: Bool or float weights [..., n]; False or 0 leaves a token out.

    Returns:
        float32 [..., NUM_SCRIPTS].
    """
    last = token_scripts.shape[0] - 1
    inside = (token_ids >= 0) & (token_ids <= last)
    scripts = torch.where(inside, token_scripts[token_ids.clamp(0, last)], int(Script.NEUTRAL))
    kinds = torch.arange(NUM_SCRIPTS, dtype=torch.int8, device=token_scripts.device)
    hits = (scripts.unsqueeze(-1) == kinds).to(torch.float32)
    if valid is not None:
        hits = hits * valid.unsqueeze(-1).to(torch.float32)
    return hits.sum(dim=-2)


def advance_state(
    state: torch.Tensor, new_counts: torch.Tensor, num_tokens: torch.Tensor | int
) -> torch.Tensor:
    """Return the state after `num_tokens` further tokens with these counts per script.

    Args:
        state: float32 [..., NUM_SCRIPTS].
        new_counts: float32 [..., NUM_SCRIPTS], from `count_scripts`.
        num_tokens: Integer [...] tensor or int: how many tokens `new_counts` counted.
    """
    tokens = torch.as_tensor(num_tokens, dtype=torch.float32, device=state.device)
    return state * torch.exp2(-tokens / HALF_LIFE).unsqueeze(-1) + new_counts


def state_of_prompt(token_scripts: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the state after a whole prompt, int [n] -> float32 [NUM_SCRIPTS]."""
    age = torch.arange(token_ids.shape[-1] - 1, -1, -1, device=token_ids.device)
    return count_scripts(token_scripts, token_ids, torch.exp2(-age.to(torch.float32) / HALF_LIFE))


def decide_language(state: torch.Tensor, current: torch.Tensor | None = None) -> torch.Tensor:
    """Return the language of each state as an index into LANGUAGES, or UNDECIDED.

    A script decides with more than half of the votes. Han votes for zh, or for ja as soon as
    MIN_KANA_SHARE of the Han and kana tokens hold kana; Latin votes for code where code signs are
    frequent beside it, for en otherwise; neutral tokens do not vote.

    Args:
        state: [..., NUM_SCRIPTS], float or integer.
        current: int64 [...]; what rows with too little evidence (a table of numbers, the first
            tokens) keep. UNDECIDED if not given.

    Returns:
        int64 [...].
    """
    counts = state.to(torch.float32)
    latin = counts[..., Script.LATIN]
    cjk = counts[..., Script.HAN] + counts[..., Script.KANA]
    is_japanese = counts[..., Script.KANA] > MIN_KANA_SHARE * cjk
    is_code = counts[..., Script.CODE] > MIN_CODE_SIGNS * latin
    nothing = torch.zeros_like(latin)
    votes_of = {
        "en": torch.where(is_code, nothing, LATIN_WEIGHT * latin),
        "code": torch.where(is_code, LATIN_WEIGHT * latin, nothing),
        "zh": torch.where(is_japanese, nothing, cjk),
        "ja": torch.where(is_japanese, cjk, nothing),
    }
    for script, language in _LANGUAGE_OF_SCRIPT.items():
        votes_of.setdefault(language, counts[..., script])
    votes = torch.stack([votes_of[language] for language in LANGUAGES], dim=-1)

    best, language = votes.max(dim=-1)
    # More than half, so that no tie can depend on the device.
    has_majority = 2 * best > votes.sum(dim=-1) + counts[..., Script.OTHER]
    enough = counts[..., Script.LATIN :].sum(dim=-1) >= MIN_EVIDENCE
    undecided = torch.full_like(language, UNDECIDED)
    decided = torch.where(has_majority, language, undecided)
    return torch.where(enough, decided, undecided if current is None else current)


def languages_of_text(
    token_scripts: torch.Tensor, token_ids: torch.Tensor, prompt_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the language of every token of a text, as the router would decide while it is written.

    The state moves in steps of HALF_LIFE tokens and starts from the prompt where there is one.
    Tokens before the first decision take the first language decided.

    Args:
        token_scripts: int8 [vocab_size].
        token_ids: int64 [n], the text or the answer.
        prompt_ids: int64 [m] or None, what came before it.

    Returns:
        int64 [n], indices into LANGUAGES; all UNDECIDED if the text never decides.
    """
    length = token_ids.shape[0]
    if not length:
        return torch.empty(0, dtype=torch.int64)
    steps = -(-length // HALF_LIFE)
    padded = torch.full((steps * HALF_LIFE,), -1, dtype=torch.int64)
    padded[:length] = token_ids
    states = _states_by_step(count_scripts(token_scripts, padded.view(steps, HALF_LIFE)))
    if prompt_ids is not None:
        fade = torch.exp2(-torch.arange(1.0, steps + 1))
        states = states + fade.unsqueeze(-1) * state_of_prompt(token_scripts, prompt_ids)
    # Rows short of evidence keep what was decided before them: a sentinel marks them first.
    keep = torch.full((steps,), -2, dtype=torch.int64)
    decisions = decide_language(states, keep).tolist()
    current = next((decision for decision in decisions if decision >= 0), UNDECIDED)
    for step, decision in enumerate(decisions):
        current = decisions[step] = current if decision == -2 else decision
    return torch.tensor(decisions).repeat_interleave(HALF_LIFE)[:length]


def _states_by_step(new_counts: torch.Tensor) -> torch.Tensor:
    """`advance_state` for every row of [steps, NUM_SCRIPTS] from zero, as one convolution."""
    reach = 24  # steps after which a token weighs less than float32 resolves beside a new one
    weights = torch.exp2(-torch.arange(reach, -1.0, -1.0))
    history = torch.nn.functional.pad(new_counts.T, (reach, 0)).unsqueeze(1)
    return torch.nn.functional.conv1d(history, weights.view(1, 1, -1)).squeeze(1).T
