"""The arguments of `sglang serve` for a model: the flags that a person would otherwise look up.

Fills in the built-in models' paths and the flags that turn FASTMTP on, and leaves every other
decision to SGLang and to our plugin inside it.
"""

from pathlib import Path

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models import built_in, catalog
from fastmtp_sglang.servers.address import last_value

_MODEL_FLAGS = ("--model-path", "--model")


def arguments(
    model: str,
    sglang_flags: list[str],
    *,
    draft: str | None = None,
    num_steps: int | None = None,
    vocabulary: Path | None = None,
    speculation: bool = True,
    dtype: str | None = None,
    progress: cache.Progress = cache.silent,
) -> list[str]:
    """Return what follows `sglang serve`: `--model-path`, the path, and flags.

    A built-in model and its head are built if need be.

    `dtype` None is `DEFAULT_DTYPE` for a built-in model, SGLang's choice for others. Flags
    given by hand come last and win; `progress` receives lines for people. Raises FastMTPError for
    arguments that contradict each other, would be ignored, or name files that do not exist.
    """
    if given := [flag for flag in sglang_flags if flag.split("=")[0] in _MODEL_FLAGS]:
        raise FastMTPError(f"{given[0]} after -- repeats MODEL {model}: remove one of the two")
    if not speculation:
        _refuse_with_baseline(
            {"--draft": draft, "--num-steps": num_steps, "--vocabulary": vocabulary}
        )
    require_directory("MODEL", model)
    if draft is not None:
        require_directory("--draft", draft)
    if vocabulary is not None and not vocabulary.is_file():
        raise FastMTPError(
            f"--vocabulary {vocabulary} is not a file: give one made by `fastmtp vocab build`"
        )

    path = model
    flags: list[str] = []
    if (ours := catalog.find(model)) is not None:
        path = str(ours.checkpoint(progress))
        by_hand = dtype or last_value(sglang_flags, "--dtype")
        flags += built_in.serve_flags(by_hand)
        if by_hand is None:
            progress(f"serving in {last_value(flags, '--dtype')}; --dtype overrides")
        if speculation and draft is None:
            head = ours.draft_head(num_steps, progress=progress)
            draft, num_steps = str(head.path), num_steps or head.num_steps
            if not head.trained:
                progress(
                    "the draft head is untrained: answers are the same, and slower than without"
                )
    elif dtype is not None:
        flags += ["--dtype", dtype]
    if speculation:
        flags += speculation_flags(draft, num_steps, vocabulary)
    return ["--model-path", path, *flags, *sglang_flags]


def speculation_flags(
    draft: str | None, num_steps: int | None, vocabulary: Path | None = None
) -> list[str]:
    """Return the flags that turn FASTMTP on in `sglang serve`; None is left to the plugin."""
    flags = ["--speculative-algorithm", "FASTMTP"]
    if draft is not None:
        flags += ["--speculative-draft-model-path", draft]
    if num_steps is not None:
        flags += ["--speculative-num-steps", str(num_steps)]
    if vocabulary is not None:
        flags += ["--speculative-token-map", str(vocabulary)]
    return flags


def check_speculation(flags: list[str]) -> None:
    """Refuse a head or a draft vocabulary that does not fit, half a minute before SGLang would.

    `flags` are those of `sglang serve` with FASTMTP. What lies on this machine is checked.
    Raises FastMTPError.
    """
    from fastmtp_sglang.head.compatibility import check_compatible
    from fastmtp_sglang.vocabulary.fit import beside_head, load_for

    target = last_value(flags, "--model-path")
    head = last_value(flags, "--speculative-draft-model-path")
    if target is None or not all(Path(path).is_dir() for path in (target, head or target)):
        return
    try:
        check_compatible(target, head)
        vocabulary = last_value(flags, "--speculative-token-map") or beside_head(head or target)
        if vocabulary is not None:
            load_for(vocabulary, target)
    except FastMTPError:
        raise
    except (OSError, ValueError):  # SGLang reads more than transformers alone does
        return


def require_directory(name: str, value: str) -> None:
    """Refuse what can only be a local path and is not there: SGLang would try to download it.

    `name` is the argument that `value` was given to. Raises FastMTPError.
    """
    looks_local = value.startswith((".", "/", "~")) or value.count("/") > 1
    if looks_local and not Path(value).is_dir():
        raise FastMTPError(
            f"{name} {value} is not a directory: give an existing one, "
            "or a Hugging Face name such as Qwen/Qwen3-8B"
        )


def _refuse_with_baseline(options: dict[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise FastMTPError(
                f"{name} {value} has no effect with --no-speculation: remove one of the two"
            )
