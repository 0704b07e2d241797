"""The options that `fastmtp bench` and `fastmtp bench sweep` share: types, defaults, words of help.

`fastmtp_sglang.cli.bench` makes an option of each field; `planning` makes a `Plan` of them. Every
`fastmtp` imports this file, so it holds nothing heavy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from fastmtp_sglang.models.license import AcceptLicense


@dataclass(frozen=True)
class Options:
    """One field an option, named as it is."""

    output: Annotated[
        Path | None, Option(help="Directory to fill; the same command goes on where it stopped.")
    ] = None
    task: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]SOURCE",
            help='.jsonl of {"id","task","system"?,"turns"}, .json (ShareGPT too), a directory of '
            ".jsonl, hub:TASK of the paper, or datasets:NAME[?config=C&split=S&column=F]. "
            "Repeatable.",
        ),
    ] = None
    shape: Annotated[
        list[str] | None,
        Option(
            metavar="INxOUT",
            help="Throughput task of so many prompt and output tokens. Repeatable.",
        ),
    ] = None
    shape_text: Annotated[
        list[str] | None,
        Option(metavar="SOURCE", help="Text that --shape cuts prompts from. Default: --task."),
    ] = None
    limit: Annotated[int | None, Option(min=1, help="Conversations per task. Default: all.")] = None
    model: Annotated[str, Option(help="Model directory, Hugging Face name, or built-in model.")] = (
        "smollm2"
    )
    draft: Annotated[
        str | None,
        Option(help="Head directory. Default: the model's own, or a built-in model's."),
    ] = None
    sglang_flags: Annotated[
        str, Option(metavar="FLAGS", help="Flags of `sglang serve`, for every configuration.")
    ] = ""
    concurrency: Annotated[
        str | None, Option(metavar="N,N,...", help="Conversations in flight. Default: 1.")
    ] = None
    rate: Annotated[
        str | None, Option(metavar="R,R,...", help="Poisson arrivals per second instead.")
    ] = None
    temperature: Annotated[float, Option(min=0, help="0: greedy, and answers are compared.")] = 0.0
    top_p: Annotated[float, Option(min=0, max=1, help="With a temperature.")] = 1.0
    top_k: Annotated[int, Option(min=-1, help="With a temperature; -1: all tokens.")] = -1
    max_new_tokens: Annotated[int, Option(min=1, help="Longest answer.")] = 1024
    output_length: Annotated[
        int | None, Option(min=1, help="Exactly so many tokens, whatever the model says.")
    ] = None
    timeout: Annotated[float, Option(min=1, help="Seconds that an answer may take.")] = 600.0
    time_limit: Annotated[
        float | None, Option(min=1, help="Seconds per measurement until no conversation begins.")
    ] = None
    retries: Annotated[int, Option(min=0, help="Times that a failed request is sent again.")] = 2
    seed: Annotated[int, Option(help="Of the arrival times.")] = 0
    repeats: Annotated[
        int, Option(min=1, help="Runs; of each conversation the fastest counts.")
    ] = 1
    rerun: Annotated[bool, Option("--rerun", help="Measure again what is finished.")] = False
    side_by_side: Annotated[
        bool,
        Option(
            "--side-by-side",
            help="Keep all servers running and take turns at each task, for a machine whose speed "
            "wanders. They need the memory together, and --sleep-on-idle.",
        ),
    ] = False
    tokenizer: Annotated[
        str | None, Option(help="Directory or name. Default: the served model's.")
    ] = None
    api_key: Annotated[
        str | None, Option(envvar="FASTMTP_API_KEY", help="Key that the servers ask for.")
    ] = None
    accept_license: AcceptLicense = False
