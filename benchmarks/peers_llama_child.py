"""llama.cpp in a process of its own: token ids in, greedy token ids out, a JSON object a line.

Run by path with any Python that has llama-cpp-python, so it imports nothing of ours:

    python peers_llama_child.py MODEL.gguf THREADS

First it tells its version; then it reads {"prompts": [[id]], "tokens": N} and answers
{"answers": [[id]]} until stdin ends. All prompts of a line are decoded as one batch; the end of
sequence is a token like any other.
"""

import json
import sys

import llama_cpp
import numpy as np

# Contexts are kept by size, rounded up so that similar batches share one.
_CONTEXT_STEP = 256


class _Decoder:
    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._threads = threads
        self._contexts: dict[tuple[int, int], object] = {}

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts)) + tokens
        room = -(-longest // _CONTEXT_STEP) * _CONTEXT_STEP
        context = self._context(len(prompts), room)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        rows = [(id, at, row) for row, ids in enumerate(prompts) for at, id in enumerate(ids)]
        ends = {(row, len(ids) - 1) for row, ids in enumerate(prompts)}
        answers = [[id] for id in self._decode(context, rows, ends)]
        while len(answers[0]) < tokens:
            places = [len(ids) + len(answers[row]) - 1 for row, ids in enumerate(prompts)]
            rows = [(answers[row][-1], at, row) for row, at in enumerate(places)]
            for answer, id in zip(
                answers, self._decode(context, rows, set(enumerate(places))), strict=True
            ):
                answer.append(id)
        return answers

    def _context(self, sequences: int, room: int) -> object:
        if (sequences, room) not in self._contexts:
            parameters = llama_cpp.llama_context_default_params()
            parameters.n_ctx = sequences * room
            parameters.n_batch = sequences * room
            parameters.n_seq_max = sequences
            parameters.n_threads = parameters.n_threads_batch = self._threads
            context = llama_cpp.llama_init_from_model(self._model, parameters)
            if not context:
                raise SystemExit(f"llama.cpp makes no context for {sequences} times {room} tokens")
            self._contexts[sequences, room] = context
        return self._contexts[sequences, room]

    def _decode(
        self, context: object, rows: list[tuple[int, int, int]], wanted: set[tuple[int, int]]
    ) -> list[int]:
        """Decode (id, position, sequence) rows; returns the next ids of the wanted ones, in order.

        `wanted` holds (sequence, position).
        """
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for index, (id, position, sequence) in enumerate(rows):
                batch.token[index] = id
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = (sequence, position) in wanted
            if status := llama_cpp.llama_decode(context, batch):
                raise SystemExit(f"llama_decode failed with {status}")
        finally:
            llama_cpp.llama_batch_free(batch)
        places = [i for i, (_, at, sequence) in enumerate(rows) if (sequence, at) in wanted]
        return [self._best(context, index) for index in places]

    def _best(self, context: object, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())


def main() -> None:
    """Answer the lines of stdin."""
    path, threads = sys.argv[1:]
    decoder = _Decoder(path, int(threads))
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answers = decoder.generate(asked["prompts"], asked["tokens"])
        print(json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    main()
