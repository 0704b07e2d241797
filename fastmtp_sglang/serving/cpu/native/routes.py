"""Moving the language state of request slots on: `routing.router.advance_in_torch`, natively.

As torch operations it is more than a hundred small ones in each decoding step.
"""

import numpy as np
from numba import types

from fastmtp_sglang.serving.cpu.native.compiled import compiled, helper
from fastmtp_sglang.serving.cpu.native.own_tokens import hold, note_all

# Numbers of `rules`, in the order of `fastmtp_kernels.route.RouteRules`.
_LATIN, _HAN, _KANA, _CODE, _OTHER, _CODE_LANGUAGE, _KANA_LANGUAGE = range(7)
_HALF_LIFE, _MIN_EVIDENCE, _LATIN_WEIGHT, _MIN_KANA_SHARE, _MIN_CODE_SIGNS = range(7, 12)
_LEAVE_ABOVE, _RETURN_BELOW, _MIN_SEEN = range(12, 15)
# Rows of `counts`, in the order of `routing.router.Count`.
_DRAFTED, _ACCEPTED, _MISSES, _REROUTED, _FALLBACKS, _AVOIDED = range(6)
_f = np.float32


@helper
def _language(scripts, rules, language_of_script, before):
    """The language of a state, as `vocabulary.languages.decide_language` says."""
    latin_script, han = int(rules[_LATIN]), int(rules[_HAN])
    kana_script, other = int(rules[_KANA]), int(rules[_OTHER])
    latin, kana = scripts[latin_script], scripts[kana_script]
    cjk = scripts[han] + kana
    best, winner = _f(-1.0), -1
    total, evidence = _f(0.0), _f(0.0)
    for script in range(latin_script, len(scripts)):
        evidence += scripts[script]
        if script in (kana_script, other) or language_of_script[script] < 0:
            continue
        vote = scripts[script]
        if script == latin_script:
            vote = _f(rules[_LATIN_WEIGHT]) * latin
        elif script == han:
            vote = cjk
        total += vote
        if vote > best:
            best, winner = vote, script
    if evidence < _f(rules[_MIN_EVIDENCE]):
        return before
    # More than half, so that no tie can depend on the device.
    if not _f(2.0) * best > total + scripts[other]:
        return -1
    if winner == latin_script and scripts[int(rules[_CODE])] > _f(rules[_MIN_CODE_SIGNS]) * latin:
        return int(rules[_CODE_LANGUAGE])
    if winner == han and kana > _f(rules[_MIN_KANA_SHARE]) * cjk:
        return int(rules[_KANA_LANGUAGE])
    return language_of_script[winner]


@compiled(
    types.void(
        *(types.int64[::1], types.int64[:, ::1], types.int64[::1], types.float64[::1]),
        *(types.int8[::1], types.int32[::1], types.int64[::1], types.int64[::1]),
        *(types.float32[:, ::1], *[types.int64[::1]] * 3, *[types.float32[::1]] * 2),
        *(types.boolean[::1], types.int64[::1], types.int64[:, :, ::1]),
        *[types.int32[:, :, ::1]] * 2,
    )
)
def advance(
    slots,
    token_ids,
    accept_lens,
    rules,
    token_scripts,
    members,
    routes,
    language_of_script,
    scripts,
    languages,
    named,
    wanted,
    seen,
    outside,
    left,
    lists,
    counts,
    own_ids,
    own_stamps,
):
    """Move slots on by the tokens that one verification accepted.

    Args:
        slots: [B], distinct.
        token_ids: [B, K + 1], the target's choice after each draft of the accepted path.
        accept_lens: [B], how many of them count.
        rules: float64 [15].
        token_scripts: these and what follows are `RouteTables` and `RouteState`, field by field.
    """
    batch, width = token_ids.shape
    full_list, vocab_size = counts.shape[2] - 1, len(token_scripts)
    for row in range(batch):
        slot, accepted = slots[row], accept_lens[row]
        fade = np.exp2(_f(-accepted) / _f(rules[_HALF_LIFE]))
        for script in range(scripts.shape[1]):
            scripts[slot, script] *= fade
        used = max(lists[slot], 0)
        for column in range(accepted):
            token = token_ids[row, column]
            known = 0 <= token < vocab_size
            scripts[slot, token_scripts[token] if known else 0] += _f(1.0)
            token = min(max(token, 0), vocab_size - 1)
            if (members[token] >> used) & 1:
                continue
            if column + 1 < accepted:
                counts[slot, _AVOIDED, used] += 1
            elif accepted < width:
                counts[slot, _MISSES, used] += not hold(own_ids[slot, used], token)
        counts[slot, _DRAFTED, used] += width - 1
        counts[slot, _ACCEPTED, used] += accepted - 1

        language = _language(scripts[slot], rules, language_of_script, languages[slot])
        languages[slot] = language
        want = named[slot] if named[slot] >= 0 else routes[language]
        rerouted = want != wanted[slot]
        wanted[slot] = want

        # What was seen against another list says nothing about this one.
        if rerouted:
            fade = _f(0.0)
        lacking = 0
        for column in range(accepted):
            token = min(max(token_ids[row, column], 0), vocab_size - 1)
            listed = (members[token] >> want) & 1
            lacking += not (listed or hold(own_ids[slot, want], token))
        seen[slot] = seen[slot] * fade + _f(accepted)
        outside[slot] = outside[slot] * fade + _f(lacking)
        was_left = left[slot] and not rerouted
        limit = _f(rules[_RETURN_BELOW] if was_left else rules[_LEAVE_ABOVE])
        is_left = outside[slot] > limit * seen[slot] and seen[slot] >= _f(rules[_MIN_SEEN])
        left[slot] = is_left
        lists[slot] = full_list if is_left else want
        counts[slot, _REROUTED, want] += rerouted
        counts[slot, _FALLBACKS, want] += is_left and not was_left
        note_all(slot, token_ids[row], accepted, members, own_ids, own_stamps)
