"""Labelled places, `NAME=PLACE`, as every command takes them: an existing path is a path."""

import os
import re

# Before a name there is no folder, no `datasets:` and no URL.
_LABELLED = re.compile(r"([^=/:?]+)=(.+)", re.DOTALL)


def split_label(text: str) -> tuple[str | None, str]:
    """Return name and place of `NAME=PLACE`; None and the text where it has no name.

    A text that is a path of this machine has none, whatever it holds: `epoch=1/a.txt`.
    """
    labelled = None if os.path.lexists(text) else _LABELLED.fullmatch(text)
    return (labelled[1], labelled[2]) if labelled else (None, text)
