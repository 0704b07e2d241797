"""Terms under which a built-in model's weights are, and how a user accepts them.

They are asked for where the weights are read (`built_in`), maybe in a process that the command
starts: so `--accept-license` goes into the environment, where an acceptance can also stand for
good. Once the checkpoint is in the cache nobody is asked again.
"""

import os
from dataclasses import dataclass
from typing import Annotated

from typer import Option

# Names of models, comma-separated, whose terms this user has accepted.
VARIABLE = "FASTMTP_ACCEPT_LICENSE"
_OF_THE_COMMAND = "*"


@dataclass(frozen=True)
class License:
    """Terms that a user accepts before the weights are used.

    Attributes:
        title: what they are called.
        url: where they stand.
        package: that holds a copy of them.
        copy: where, below its site-packages.
        notice: the words that have to be with whatever is made of the weights.
    """

    title: str
    url: str
    package: str
    copy: str
    notice: str


def is_accepted(name: str) -> bool:
    """Whether the terms of the model of this name are accepted."""
    return not {name, _OF_THE_COMMAND}.isdisjoint(os.environ.get(VARIABLE, "").split(","))


def _accept(given: bool) -> bool:
    if given:
        os.environ[VARIABLE] = _OF_THE_COMMAND
    return given


# An option of every command that may be the first to use a model; its callback does all.
AcceptLicense = Annotated[
    bool,
    Option(
        "--accept-license",
        callback=_accept,
        help="Accept the terms of the built-in model's weights (gemma3-270m: the Gemma Terms of "
        "Use, https://ai.google.dev/gemma/terms). Needed once.",
    ),
]
