"""Which ids a list holds: exact sizes, ties, what is always in, merges, recommended sizes.

Run alone: pytest tests/vocabulary/test_ranking.py
"""

from dataclasses import dataclass

import numpy as np
import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.counting import TokenCounts
from fastmtp_sglang.vocabulary.draft_cost import DraftCost
from fastmtp_sglang.vocabulary.ranking import (
    RankedList,
    check_size,
    choose_languages,
    merge_routes,
    rank,
    recommend,
)


@dataclass
class FakeTarget:
    """Ten rows of head, eight tokens, one of them beyond what the model has."""

    vocab_size: int = 10
    token_bytes: tuple = (b"a", b"b", b"c", None, b"d", b"e", b"f", b"g", None, None, b"beyond")


def counts_of(heldout: dict[str, dict[int, int]] | None = None, **counted: dict[int, int]):
    counts = TokenCounts(10)
    groups = (
        (counts.counted, counted),
        (counts.heldout, heldout or {}),
        (counts.repeats, {name: {} for name in heldout or {}}),
    )
    for group, values in groups:
        for language, histogram in values.items():
            group[language] = np.zeros(10, dtype=np.int64)
            for index, times in histogram.items():
                group[language][index] = times
    return counts


def ranking(counts: TokenCounts, required: set[int], language: str = "en") -> list[int]:
    merged = merge_routes(counts, list(counts.counted), {})
    return rank(merged, FakeTarget(), required, [language])[language].ids.tolist()


def test_always_included_ids_come_first_then_counts_then_all_languages_then_ids():
    counts = counts_of(en={7: 5, 6: 5, 4: 9}, zh={2: 3, 6: 1})
    # 1 is always in; 4 is most frequent; 6 and 7 tie in English, 6 is in Chinese too; 2 only there.
    assert ranking(counts, {1}) == [1, 4, 6, 7, 2, 0, 5]


def test_ties_go_to_the_lower_id():
    assert ranking(counts_of(en={7: 2, 0: 2, 4: 2}), set()) == [0, 4, 7, 1, 2, 5, 6]


def test_ids_without_a_token_or_beyond_the_model_are_never_ranked():
    assert set(ranking(counts_of(en={7: 1}), set())) == {0, 1, 2, 4, 5, 6, 7}


def test_a_stop_id_without_a_token_but_with_a_row_is_in_every_list():
    assert ranking(counts_of(en={7: 1}), {8}) == [8, 7, 0, 1, 2, 4, 5, 6]


def test_lists_are_ranked_by_all_counts_and_measured_without_the_held_out_ones():
    counts = counts_of({"en": {4: 6, 7: 4}}, en={7: 5, 4: 1})
    ranked = rank(merge_routes(counts, ["en"], {}), FakeTarget(), set(), ["en"])["en"]
    assert ranked.counts[[4, 7]].tolist() == [7, 9]
    assert ranked.ids[:2].tolist() == [7, 4]
    assert ranked.coverage(1) == 0.4
    counts.counted["en"], counts.heldout["en"] = counts.heldout["en"], counts.counted["en"]
    swapped = rank(merge_routes(counts, ["en"], {}), FakeTarget(), set(), ["en"])["en"]
    assert swapped.ids.tolist() == ranked.ids.tolist()
    assert swapped.coverage(1) == 1 / 6


@pytest.mark.parametrize(
    ("size", "message"), [(2, "alone are 3 ids. Choose a larger"), (8, "has 7 tokens below")]
)
def test_impossible_sizes_are_refused(size: int, message: str):
    counts = merge_routes(counts_of(en={7: 1}), ["en"], {})
    ranked = rank(counts, FakeTarget(), {0, 1, 2}, ["en"])["en"]
    with pytest.raises(FastMTPError, match=f"size {size} of 'en'.*{message}"):
        check_size(ranked, size, "en")
    for possible in (3, 7):
        check_size(ranked, possible, "en")


def test_coverage_is_that_of_held_out_text():
    counts = counts_of({"en": {4: 6, 7: 3, 5: 1}}, en={4: 9, 7: 5})
    ranked = rank(merge_routes(counts, ["en"], {}), FakeTarget(), set(), ["en"])["en"]
    assert [ranked.coverage(size) for size in (1, 2, 7)] == [0.6, 0.9, 1.0]
    nothing = rank(merge_routes(counts_of(en={4: 9}), ["en"], {}), FakeTarget(), set(), ["en"])
    assert nothing["en"].coverage(1) is None


def test_a_language_without_a_list_counts_for_the_one_it_routes_to():
    counts = counts_of({"code": {5: 1}}, en={4: 1}, code={5: 2}, zh={6: 4})
    counts.documents = {"en": 3, "code": 2}
    merged = merge_routes(counts, ["en"], {"en": "en", "code": "en"})
    assert merged.counted["en"].tolist() == [0, 0, 0, 0, 1, 2, 0, 0, 0, 0]
    assert merged.heldout["en"][5] == 1
    assert merged.documents == {"en": 5}
    apart = merge_routes(counts, ["en", "code"], {"en": "en", "code": "code"})
    assert apart.counted["en"][5] == 0


def test_which_languages_get_a_list():
    heldout = {"en": {0: 1}, "zh": {0: 1}, "ko": {0: 1}}
    counts = counts_of(heldout, zh={0: 500}, en={0: 500}, ko={0: 5}, ja={0: 100}, fr={0: 1})
    # ko is below one percent, nothing of ja was held out.
    assert choose_languages(counts, [], []) == ["en", "zh"]
    assert choose_languages(counts, ["fr"], []) == ["en", "zh", "fr"]
    assert choose_languages(counts, [], ["ko", "ja"]) == ["ja", "ko"]
    with pytest.raises(FastMTPError, match=r"--languages th: no tokens of it were counted.*en, fr"):
        choose_languages(counts, [], ["th"])
    with pytest.raises(FastMTPError, match="no language could be told"):
        choose_languages(TokenCounts(10), [], [])


def ranked_with_coverage(shares: dict[int, float], rows: int = 1000) -> RankedList:
    """A list whose held-out coverage at these sizes is these shares."""
    heldout = np.zeros(rows, dtype=np.int64)
    before = 0.0
    for size, share in shares.items():
        heldout[size - 1] = round(10_000 * (share - before))
        before = share
    heldout[rows - 1] += 10_000 - heldout.sum()
    ids, repeats = np.arange(rows), heldout // 2
    return RankedList(ids, ids, heldout, heldout, repeats, required=0, documents=10)


def test_a_size_is_recommended_from_coverage_and_bytes():
    ranked = ranked_with_coverage({100: 0.90, 200: 0.97, 400: 0.98})
    large_head = DraftCost(target=5000, layer=100, row=1, vocab_size=1000)
    assert recommend(ranked, [100, 200, 400], large_head) == 200
    small_head = DraftCost(target=10**9, layer=10**6, row=1, vocab_size=1000)
    assert recommend(ranked, [100, 200, 400], small_head) is None


def test_own_tokens_make_smaller_lists_possible():
    """Half of what is missing came before in its document."""
    ranked = ranked_with_coverage({100: 0.90, 200: 0.97, 400: 0.98})
    assert ranked.own_coverage(100) == pytest.approx(0.95)
    assert ranked.own_coverage(1000) == 1.0
    cost = DraftCost(target=5000, layer=100, row=1, vocab_size=1000)
    assert recommend(ranked, [100, 200, 400], cost) == 200
    assert recommend(ranked, [100, 200, 400], cost, own_tokens=64) == 100


def test_nothing_is_recommended_without_held_out_text():
    nothing = np.zeros(9, dtype=np.int64)
    ranked = RankedList(np.arange(9), np.arange(9), np.ones(9), nothing, nothing, 0, 1)
    assert recommend(ranked, [5], DraftCost(target=1, layer=1, row=1, vocab_size=1000)) is None
