"""One name of SGLang that we depend on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hook:
    """One name of SGLang that we depend on.

    Attributes:
        kind: "override" (we replace or extend it), "call" or "read".
        path: dotted module, a colon, and the function, class, attribute or Class.method in it.
        parameters: for functions and methods, the parameters that we pass or receive, in order,
            separated by blanks and without self; the installed function must start with them.
            None for other names.
    """

    kind: str
    path: str
    parameters: str | None = None
