import pytest
import torch

from fastmtp_kernels.slots import DraftSlots

LISTS = {"en": [0, 2, 3, 9], "zh": [3, 4, 9], "none": [], "all": range(10)}


def random_lists(languages: int, vocab: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(languages)
    return {
        f"l{number}": (torch.rand(vocab) < 0.5).nonzero().flatten() for number in range(languages)
    }


def test_every_list_is_found_again_in_the_slots():
    slots = DraftSlots.build(LISTS, 10)
    for language, ids in enumerate(LISTS.values()):
        assert slots.token_ids[slots.slots_of(language)].tolist() == list(ids)
    assert slots.languages == tuple(LISTS)
    assert torch.equal(slots.head_rows, slots.token_ids)
    assert len(slots) == 10


def test_ids_ascend_within_a_membership_pattern():
    slots = DraftSlots.build(LISTS, 10)
    for pattern in slots.language_bits.unique():
        ids = slots.token_ids[slots.language_bits == pattern]
        assert (ids.diff() > 0).all()


def test_two_languages_and_the_full_vocabulary_are_one_range_each():
    slots = DraftSlots.build({name: LISTS[name] for name in ("en", "zh", "all")}, 10)
    assert [len(slots.ranges(language)) for language in range(3)] == [1, 1, 1]
    assert slots.ranges(2) == [(0, 10)]


@pytest.mark.parametrize("languages", [3, 4, 6])
def test_a_language_is_half_the_ranges_of_numerical_order(languages: int):
    slots = DraftSlots.build(random_lists(languages, 2000), 2000)
    for language in range(languages):
        ranges = slots.ranges(language)
        assert len(ranges) <= max(1, 2 ** (languages - language - 2))
        members = torch.cat([torch.arange(start, end) for start, end in ranges])
        assert members.tolist() == slots.slots_of(language).sort().values.tolist()


def test_a_shard_holds_its_ids_and_counts_its_rows_from_zero():
    lists = random_lists(3, 100)
    found = []
    for start, end in ((0, 13), (13, 13), (13, 90), (90, 100)):
        slots = DraftSlots.build(lists, 100, shard=(start, end))
        assert torch.equal(slots.head_rows, slots.token_ids - start)
        assert ((slots.head_rows >= 0) & (slots.head_rows < end - start)).all()
        found.append(slots.token_ids)
    assert torch.equal(
        torch.cat(found).sort().values, DraftSlots.build(lists, 100).token_ids.sort()[0]
    )


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_a_tile_serves_the_languages_of_its_slots(tile: int):
    slots = DraftSlots.build(random_lists(31, 150), 150)
    tiles = slots.tile_bits(tile)
    for number, bits in enumerate(tiles.tolist()):
        expected = 0
        for slot_bits in slots.language_bits[number * tile : (number + 1) * tile].tolist():
            expected |= slot_bits
        assert bits == expected >= 0
    assert len(tiles) == -(-len(slots) // tile)


def test_without_slots_there_is_one_tile_that_serves_nobody():
    assert DraftSlots.build({"en": []}, 10).tile_bits(64).tolist() == [0]


@pytest.mark.parametrize(
    ("lists", "shard", "message"),
    [
        ({}, None, "between 1 and 31"),
        ({str(number): [0] for number in range(32)}, None, "between 1 and 31"),
        ({"en": [0, 10]}, None, "'en'.*ascending"),
        ({"en": [-1, 1]}, None, "ascending"),
        ({"en": [1, 1]}, None, "ascending"),
        ({"en": [2, 1]}, None, "ascending"),
        ({"en": [0.0, 1.0]}, None, "integers"),
        ({"en": torch.ones(10, dtype=torch.bool)}, None, "integers"),
        ({"en": torch.ones(2, 2, dtype=torch.int64)}, None, "one-dimensional"),
        ({"en": [1]}, (5, 11), "shard"),
        ({"en": [1]}, (5, 4), "shard"),
    ],
)
def test_wrong_lists_are_refused(lists: dict, shard: tuple[int, int] | None, message: str):
    with pytest.raises(ValueError, match=message):
        DraftSlots.build(lists, 10, shard)
