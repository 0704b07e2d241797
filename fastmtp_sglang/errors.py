"""The one exception type for everything that a user can put right.

Its message names the argument, the value, the reason and the remedy. The command line prints it
without a traceback and exits with 2.
"""

# What the line begins with.
ERROR = "error: "


class FastMTPError(ValueError):
    """A user-facing error: what was given, why it cannot work, and what to do instead."""
