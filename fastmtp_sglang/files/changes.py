"""What differs between the settings of an earlier run and those of this one, in words."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NO_NAMES: Mapping[str, str] = MappingProxyType({})
# Of a list with hundreds of files.
_MOST_ITEMS = 3


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Mapping[str, str] = _NO_NAMES
) -> list[str]:
    """Return what differs.

    Args:
        before: setting -> value, as JSON gives it back.
        now: the same of this run.
        names: setting -> what the user calls it, where that is not its key.
    """
    return [
        f"{names.get(key, key)} {_words(before.get(key), now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def _words(before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list):
        # Of two long lists only what is not in both; their order alone is told by the whole.
        gone = [item for item in before if item not in now] or before
        new = [item for item in now if item not in before] or now
        before, now = _shortened(gone), _shortened(new)
    return f"was {before!r} and is {now!r}"


def _shortened(items: list[Any]) -> list[Any]:
    more = len(items) - _MOST_ITEMS
    return [*items[:_MOST_ITEMS], f"{more} more"] if more > 0 else items
