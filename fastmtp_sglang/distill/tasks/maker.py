"""Makes the rows of `fastmtp data prompts`: kinds drawn by weight, repeats and quotations left out.

Row N depends on the seed, N and the material alone, so a longer run begins with a shorter one's
rows.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fastmtp_sglang.distill.dedup import Contamination
from fastmtp_sglang.distill.mixing import parse_weight
from fastmtp_sglang.distill.tasks.kinds import KINDS
from fastmtp_sglang.distill.tasks.material import Material
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import replacing

# So often may a draw give nothing new before the material counts as used up.
_TRIES = 200
REPEATED = "repeated"
QUOTED = "quotes an evaluation"


@dataclass
class TasksReport:
    """What was made: rows and words (of all user turns) by kind, and draws left out by reason."""

    rows: Counter[str] = field(default_factory=Counter)
    words: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    left_out: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Return it as JSON takes it: rows, median and longest number of words of each kind."""
        kinds = {}
        for kind, count in sorted(self.rows.items()):
            lengths = sorted(self.words[kind])
            kinds[kind] = {
                "rows": count,
                "median_words": lengths[len(lengths) // 2],
                "most_words": lengths[-1],
            }
        return {"kinds": kinds, "left_out": dict(sorted(self.left_out.items()))}


def parse_mix(texts: Sequence[str]) -> dict[str, float]:
    """Read `KIND=WEIGHT`; kinds that are not named keep the weight 1. Raises FastMTPError."""
    mix = dict.fromkeys(KINDS, 1.0)
    for text in texts:
        kind, weight = parse_weight("--kind", "KIND", text)
        if kind not in KINDS:
            raise FastMTPError(f"--kind {text}: {kind!r} is none of {', '.join(KINDS)}")
        mix[kind] = weight
    if not any(mix.values()):
        raise FastMTPError("--kind: all weights are 0, so nothing would be made")
    return mix


def make_tasks(
    material: Material,
    mix: Mapping[str, float],
    number: int,
    seed: int,
    excluded: Sequence[str],
    report: TasksReport,
) -> Iterator[tuple[str, list[str]]]:
    """Yield `number` rows as (kind, user turns) and count them in `report`.

    `mix` holds the weight of each kind, `excluded` the prompts of evaluations. Raises FastMTPError
    when the material gives nothing new any more.
    """
    kinds = [kind for kind, weight in mix.items() if weight]
    weights = [mix[kind] for kind in kinds]
    contamination = Contamination(excluded)
    seen: set[bytes] = set()
    for index in range(number):
        random = Random(f"{seed}/{index}")
        for _ in range(_TRIES):
            kind = random.choices(kinds, weights)[0]
            turns = KINDS[kind](random, material)
            text = "\n".join(turns)
            key = hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]
            if key in seen:
                report.left_out[REPEATED] += 1
            elif contamination.holds(text):
                report.left_out[QUOTED] += 1
            else:
                break
        else:
            raise FastMTPError(
                f"--number {number:,}: after {index:,} prompts the material gives nothing new; ask "
                "for fewer, give other texts with --texts or more kinds a weight"
            )
        seen.add(key)
        report.rows[kind] += 1
        report.words[kind].append(len(text.split()))
        yield kind, turns


def write_tasks(
    folder: Path, rows: Iterator[tuple[str, list[str]]], on_row: Callable[[], None]
) -> list[Path]:
    """Write one file a kind into `folder`, `KIND.jsonl`; all of them appear together at the end.

    One file a kind, since `distill --prompts` names the records of a file after it: what is
    measured or weighted later by source is then by kind. Returns the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for kind, turns in rows:
            if kind not in files:
                files[kind] = stack.enter_context(replacing(folder / f"{kind}.jsonl"))
            files[kind].write(f"{json.dumps({'turns': turns})}\n".encode())
            on_row()
    return [folder / f"{kind}.jsonl" for kind in sorted(files)]
