"""Serve requests with `sglang.Engine` in this process, and write down what the draft model does.

    python record_drafts.py PLAN.json

PLAN is a list of runs, each one engine after the other:

    {"flags": keyword arguments of Engine, "batches": lists of {rid: prompt ids} sent together,
     "max_new_tokens": int, "answers": path, "records": path or null,
     "shapes": with speculative_adaptive, what one decoding step after the other drafts, as
         K x top-k x rows, or "plain"; repeated}

`answers` becomes a JSON object {rid: output ids}. `records` becomes a stream of pickled
dictionaries, written by the scheduler process; their keys are at `_recorded_forward`,
`_recorded_draft` and `_recorded_seen`. A script, because SGLang spawns its processes and they
import this module again.
"""

import functools
import itertools
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

RECORDS = "FASTMTP_DRAFT_RECORDS"
SHAPES = "FASTMTP_DRAFT_SHAPES"


def scheduler_process(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process, in which every call of the draft model is recorded."""
    from sglang.srt.managers.scheduler import run_scheduler_process

    from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape
    from fastmtp_sglang.serving.adaptive.adaptive_shapes import AdaptiveShapes
    from fastmtp_sglang.serving.drafting.head_model import FastMTPHead
    from fastmtp_sglang.serving.drafting.native_head import MiMoMTP
    from fastmtp_sglang.serving.worker import FastMTPDraftWorker

    stream = Path(os.environ[RECORDS]).open("ab", buffering=0)  # noqa: SIM115 (until the end)
    for model in (FastMTPHead, MiMoMTP):
        model.forward = _recorded_forward(model.forward, stream)
    FastMTPDraftWorker.draft = _recorded_draft(FastMTPDraftWorker.draft, stream)
    if shapes := json.loads(os.environ[SHAPES]):
        schedule = itertools.cycle(PLAIN if s == "plain" else TreeShape.parse(s) for s in shapes)
        AdaptiveShapes._choose = lambda policy, load, batch_size: next(schedule)
        AdaptiveShapes._seen = _recorded_seen(AdaptiveShapes._seen, stream)
    run_scheduler_process(*args, **kwargs)


def _recorded_forward(forward: Any, stream: Any) -> Any:
    """Record requests, phase, rows per request, accepted rows, inputs, and the output."""

    @functools.wraps(forward)
    def recorded(self: Any, input_ids: Any, positions: Any, batch: Any, *args: Any) -> Any:
        if batch.rids is None:
            # The keys of several steps, after which the model is left.
            pickle.dump({"phase": "KEYS", "positions": _copy(positions)}, stream)
            return forward(self, input_ids, positions, batch, *args)
        lengths = batch.extend_seq_lens
        record = {
            "rids": list(batch.rids),
            "phase": batch.forward_mode.name,
            "rows": [1] * len(batch.rids) if lengths is None else lengths.tolist(),
            "accepted": _copy(getattr(batch.spec_info, "num_accept_tokens", None)),
            "ids": _copy(input_ids),
            "positions": _copy(positions),
            "hidden_states": _copy(batch.spec_info.hidden_states),
        }
        output = forward(self, input_ids, positions, batch, *args)
        record["output"] = _copy(output.hidden_states)
        pickle.dump(record, stream)
        return output

    return recorded


def _recorded_draft(draft: Any, stream: Any) -> Any:
    """Record the K drafted ids of each request, the token before them, and its position."""

    @functools.wraps(draft)
    def recorded(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        record = {"rids": [request.rid for request in batch.reqs], "phase": "drafted"}
        record["positions"] = _copy(batch.seq_lens)
        verify_input = draft(self, batch, *args, **kwargs)
        record["ids"] = _copy(verify_input.draft_token.view(len(record["rids"]), -1))
        pickle.dump(record, stream)
        return verify_input

    return recorded


def _recorded_seen(seen: Any, stream: Any) -> Any:
    """Record the shape of a step, what clients got, and what others would have had accepted."""

    @functools.wraps(seen)
    def recorded(self: Any, step: Any, emitted: Any) -> Any:
        found = seen(self, step, emitted)
        record = {"phase": "seen", "shape": str(step.shape), "emitted": [n for _, n in emitted]}
        record["accepted"] = {str(shape): list(counts.accepted) for shape, counts in found.items()}
        pickle.dump(record, stream)
        return found

    return recorded


def _copy(tensor: Any) -> Any:
    """As numpy; a copy, since the steps that follow write into the same tensors."""
    return None if tensor is None else tensor.detach().clone().numpy()


def main(plan: Path) -> None:
    from sglang.srt.entrypoints.engine import Engine

    class RecordedEngine(Engine):
        run_scheduler_process_func = staticmethod(scheduler_process)

    for run in json.loads(plan.read_text()):
        os.environ[RECORDS] = run["records"] or ""
        os.environ[SHAPES] = json.dumps(run["shapes"])
        engine = (RecordedEngine if run["records"] else Engine)(**run["flags"])
        answers = {}
        try:
            for batch in run["batches"]:
                outputs = engine.generate(
                    input_ids=list(batch.values()),
                    rid=list(batch),
                    sampling_params={
                        "temperature": 0,
                        "max_new_tokens": run["max_new_tokens"],
                        "ignore_eos": True,
                    },
                )
                answers |= {rid: o["output_ids"] for rid, o in zip(batch, outputs, strict=True)}
        finally:
            engine.shutdown()
        Path(run["answers"]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
