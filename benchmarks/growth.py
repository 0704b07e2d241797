"""How a head's acceptance grew with tokens and minutes of training, from the log of its run.

    python -m fastmtp_benchmarks.growth RUN... --output benchmarks/results/smollm2-growth

RUN is an output folder of `fastmtp train`; of several, each one went on from the head of the one
before. Writes OUTPUT.json and the plot OUTPUT.png.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmtp_benchmarks.environment import save
from fastmtp_sglang.errors import FastMTPError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOKENS = "num_input_tokens_seen"
_DPI = 150


@dataclass(frozen=True)
class Point:
    """One validation.

    Attributes:
        tokens: Trained on since the first run began, prompts included.
        minutes: Of training since then, without validation.
        acceptance_length: Of free-running chains on held-out text.
        accepted: Share of chains in which drafts 1..k were all accepted, for each step k.
    """

    tokens: int
    minutes: float
    acceptance_length: float
    accepted: list[float]


def points(run: Path, tokens_per_epoch: int | None = None) -> list[Point]:
    """Read the validations of one run.

    Args:
        run: output folder of `fastmtp train`.
        tokens_per_epoch: for a log that does not count tokens, of fastmtp-sglang before 0.1.

    Raises:
        FastMTPError: there is no checkpoint, or its log does not count tokens.
    """
    states = list(run.glob("checkpoint-*/trainer_state.json"))
    if not states:
        raise FastMTPError(f"{run}: no checkpoint-*/trainer_state.json; give `fastmtp train`'s")
    last = max(states, key=lambda path: int(path.parent.name.rpartition("-")[2]))
    found: list[Point] = []
    tokens = seconds = 0.0
    for line in json.loads(last.read_text())["log_history"]:
        before, tokens = tokens, _tokens(run, line, tokens_per_epoch)
        if "tokens_per_second" in line:
            seconds += (tokens - before) / line["tokens_per_second"]
        if "eval_acceptance_length" in line:
            steps = [k for k in range(1, 100) if f"eval_accepted_{k}" in line]
            accepted = [line[f"eval_accepted_{k}"] for k in steps]
            found.append(Point(int(tokens), seconds / 60, line["eval_acceptance_length"], accepted))
    return found


def _tokens(run: Path, line: dict[str, Any], tokens_per_epoch: int | None) -> float:
    if line.get(_TOKENS):
        return float(line[_TOKENS])
    if tokens_per_epoch is None:
        raise FastMTPError(f"{run}: its log does not count tokens; give --tokens-per-epoch")
    return float(line["epoch"] * tokens_per_epoch)


def joined(runs: list[list[Point]]) -> list[Point]:
    """Put runs one behind the other."""
    whole: list[Point] = []
    for run in runs:
        tokens, minutes = (whole[-1].tokens, whole[-1].minutes) if whole else (0, 0.0)
        whole += [
            Point(p.tokens + tokens, p.minutes + minutes, p.acceptance_length, p.accepted)
            for p in run
        ]
    return whole


def plot(grown: list[Point]) -> Figure:
    """Acceptance of each step, and acceptance length, over tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    tokens = [point.tokens / 1000 for point in grown]
    for step in range(len(grown[0].accepted)):
        shares = [100 * point.accepted[step] for point in grown]
        axes.plot(tokens, shares, marker="o", label=f"the first {step + 1} accepted")
    axes.set_xlabel("thousand tokens trained on")
    axes.set_ylabel("% of chains on held-out text")
    axes.set_ylim(bottom=0)
    axes.legend(loc=(0.62, 0.5))
    for point in grown:
        axes.annotate(
            f"{point.acceptance_length:.2f}\n{point.minutes:.0f} min",
            (point.tokens / 1000, 100 * point.accepted[0]),
            textcoords="offset points",
            xytext=(0, -26),
            ha="center",
            fontsize=7,
        )
    axes.set_title("Acceptance while training (below: acceptance length, minutes)")
    return figure


def main(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `fastmtp train`, in turn.")],
    output: Annotated[Path, typer.Option(help="Files to write, without .json and .png.")],
    tokens_per_epoch: Annotated[
        int | None, typer.Option(help="For a first run whose log does not count tokens.")
    ] = None,
) -> None:
    """Write how acceptance grew."""
    grown = joined([points(run, tokens_per_epoch) for run in runs])
    result = {"points": [asdict(point) for point in grown]}
    save(result, output.with_suffix(".json"), shlex.join(sys.argv))
    plot(grown).savefig(output.with_suffix(".png"), dpi=_DPI, bbox_inches="tight")


if __name__ == "__main__":
    typer.run(main)
