"""The threads that compute, and the sweep of all of them through a list of operators.

One thread is the caller's; the others belong to the team, wait for work with open eyes for a moment
(the gaps within a decoding step) and then sleep. An operator falls into parts, which the threads
claim one after the other; the next operator begins when all parts are done. So nobody waits for a
thread that the system has not let run: it finds nothing left to claim. A sweep touches no Python
object and runs without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import threading
import weakref

import numpy as np
from numba import njit, types

from fastmtp_sglang.serving.cpu.native.compiled import compiled
from fastmtp_sglang.serving.cpu.native.machine import (
    call,
    exchange,
    fetch_add,
    integers,
    load_acquire,
    pause,
    store_release,
)
from fastmtp_sglang.serving.cpu.native.passes import (
    FIELDS,
    PARTS,
    PARTS_A_ROW,
    PASS_FIELDS,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
)

_sem_post = types.ExternalFunction("sem_post", types.int32(types.int64))
_sem_wait = types.ExternalFunction("sem_wait", types.int32(types.int64))
_yield = types.ExternalFunction("sched_yield", types.int32())

# The team's shared memory, in bytes; what different threads write lies on different cache lines.
_JOB, _SLEEPING, _SEMAPHORE = 0, 128, 256
_OPS, _COUNT, _PASS, _COUNTERS, _WORKERS, _STOP = 384, 392, 400, 408, 416, 424
_CONTROL_BYTES = 512
# Two counters for each operator, parts claimed and parts done, each below the number of the job in
# the upper half: whoever comes too late for a job changes nothing in the next one.
_COUNTER_BYTES = 16
_LOW = (1 << 32) - 1
_JOBS = (1 << 30) - 1
_NO_JOB = 1 << 30
# Some 0.1 ms: the gaps between the sweeps of a decoding step.
_LOOKS_BEFORE_SLEEP = 5_000
# A thread that waits longer than a part takes lets others run: the late one may need this core.
_LOOKS_BEFORE_YIELD = 1_000
# Parts are claimed in bundles, about so many for each worker.
_BUNDLES = 8


@njit
def _sweep(job, ops, count, given, counters, scratch, workers):
    """This worker's share of `count` operators over all rows of a pass."""
    rows = integers(given, PASS_FIELDS)[ROWS]
    for i in range(count):
        op = ops + i * FIELDS * 8
        fields = integers(op, FIELDS)
        parts = fields[PARTS_A_ROW] * rows + fields[PARTS]
        bundle = max(1, parts // (workers * _BUNDLES))
        claimed = counters + i * _COUNTER_BYTES
        done = claimed + 8
        while True:
            counter = load_acquire(claimed)
            if counter >> 32 != job:
                return
            start = counter & _LOW
            if start >= parts:
                break
            stop = min(start + bundle, parts)
            if exchange(claimed, counter, counter + stop - start):
                call(fields[0], op, rows, given, scratch, start, stop)
                fetch_add(done, stop - start)
        looks = 0
        while True:
            counter = load_acquire(done)
            if counter >> 32 != job:
                return
            if counter & _LOW >= parts:
                break
            looks += 1
            if looks < _LOOKS_BEFORE_YIELD:
                pause()
            else:
                _yield()


@compiled(types.int32(types.int64, types.int64))
def _serve(control, worker):
    """The caller's part of a sweep (worker 0), or the life of a thread of the team."""
    memory = integers(control, _CONTROL_BYTES // 8)
    workers = memory[_WORKERS // 8]
    seen = 0
    while True:
        if worker == 0:
            seen = memory[_JOB // 8] + 1
            for i in range(2 * memory[_COUNT // 8]):
                store_release(memory[_COUNTERS // 8] + 8 * i, (seen & _JOBS) << 32)
            fetch_add(control + _JOB, 1)
            for _ in range(fetch_add(control + _SLEEPING, 0)):
                _sem_post(control + _SEMAPHORE)
        else:
            looks = 0
            while load_acquire(control + _JOB) == seen:
                looks += 1
                if looks < _LOOKS_BEFORE_SLEEP:
                    pause()
                    continue
                fetch_add(control + _SLEEPING, 1)
                if load_acquire(control + _JOB) == seen:
                    _sem_wait(control + _SEMAPHORE)
                fetch_add(control + _SLEEPING, -1)
            seen = load_acquire(control + _JOB)
        if memory[_STOP // 8]:
            return 0
        given = memory[_PASS // 8]
        fields = integers(given, PASS_FIELDS)
        _sweep(
            seen & _JOBS,
            memory[_OPS // 8],
            memory[_COUNT // 8],
            given,
            memory[_COUNTERS // 8],
            fields[SCRATCH] + worker * fields[SCRATCH_BYTES],
            workers,
        )
        if worker == 0:
            # The next job's operators are written before its counters: nobody claims them for this.
            for i in range(memory[_COUNT // 8]):
                store_release(memory[_COUNTERS // 8] + _COUNTER_BYTES * i, _NO_JOB << 32)
            return 0


class Team:
    """A number of threads, the caller's among them, that compute lists of operators together.

    They end with the team's last reference.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = np.zeros(_CONTROL_BYTES // 8, dtype=np.int64)
        self._control = self._memory.ctypes.data
        self._memory[_WORKERS // 8] = workers
        # A thread holds what it looks at, whoever else has let go of it.
        self._held: list[np.ndarray] = [self._memory]
        self._room_for(64)
        self._lock = threading.Lock()
        ctypes.CDLL(None).sem_init(ctypes.c_void_p(self._control + _SEMAPHORE), 0, 0)
        self._threads = [
            threading.Thread(target=_live, args=(self._held, worker), daemon=True)
            for worker in range(1, workers)
        ]
        for thread in self._threads:
            thread.start()
        self._dismiss = weakref.finalize(self, _dismiss, self._memory)
        # At the end of the process there is nothing left to end.
        self._dismiss.atexit = False

    def _room_for(self, count: int) -> None:
        """Counters of so many operators; a thread that comes late may still look at former ones."""
        self._counters = np.zeros((count, 2), dtype=np.int64)
        self._held.append(self._counters)
        self._memory[_COUNTERS // 8] = self._counters.ctypes.data

    def compute(self, ops: int, count: int, given: int) -> None:
        """Compute operators one after the other.

        Args:
            ops: address of int64 [count, FIELDS].
            count: how many.
            given: address of int64 [PASS_FIELDS], what the rows of this pass are.
        """
        with self._lock:
            memory = self._memory
            if count > len(self._counters):
                self._room_for(2 * count)
            memory[_OPS // 8], memory[_COUNT // 8], memory[_PASS // 8] = ops, count, given
            _serve(self._control, 0)

    def stop(self) -> None:
        """End the team's threads."""
        with self._lock:
            self._dismiss()
        for thread in self._threads:
            thread.join()


def _live(held: list[np.ndarray], worker: int) -> None:
    """The life of a thread of the team; the first of what it holds is the shared memory."""
    _serve(held[0].ctypes.data, worker)


def _dismiss(memory: np.ndarray) -> None:
    """Let the threads of this memory end."""
    memory[_STOP // 8], memory[_COUNT // 8] = 1, 0
    _serve(memory.ctypes.data, 0)
