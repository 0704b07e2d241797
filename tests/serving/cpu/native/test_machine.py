"""Arrays at addresses, and numbers that several threads change at once.

Alone: pytest tests/serving/cpu/native/test_machine.py
"""

import threading

import numpy as np
import pytest
from numba import njit

from fastmtp_sglang.serving.cpu.native.machine import (
    exchange,
    fetch_add,
    floats,
    halves,
    integers,
    load_acquire,
    pause,
    small_integers,
    store_release,
)


@pytest.mark.parametrize(
    ("array_at", "dtype"),
    [
        (floats, np.float32),
        (halves, np.uint16),
        (integers, np.int64),
        (small_integers, np.int32),
    ],
    ids=["floats", "halves", "integers", "small integers"],
)
def test_an_array_at_an_address_is_that_memory(array_at, dtype):
    @njit
    def double(address, count):
        array = array_at(address, count)
        for i in range(len(array)):
            array[i] = array[i] * array.dtype.type(2)

    memory = np.arange(1, 8).astype(dtype)
    double(memory.ctypes.data + 2 * memory.itemsize, 3)
    assert memory.tolist() == [1, 2, 6, 8, 10, 6, 7]


@njit(nogil=True)
def take_tickets(counter, tickets, times):
    numbers = integers(tickets, times)
    for i in range(times):
        numbers[i] = fetch_add(counter, 1)


@njit(nogil=True)
def add_in_turn(lock, total, times):
    """Plain additions under a lock of one number."""
    number = integers(total, 1)
    for _ in range(times):
        while not exchange(lock, 0, 1):
            pause()
        number[0] += 1
        store_release(lock, 0)


@njit
def read(address):
    return load_acquire(address)


def test_no_ticket_is_given_twice():
    counter, times = np.array([5]), 20_000
    tickets = [np.zeros(times, dtype=np.int64) for _ in range(3)]
    threads = [
        threading.Thread(target=take_tickets, args=(counter.ctypes.data, own.ctypes.data, times))
        for own in tickets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.sort(np.concatenate(tickets)).tolist() == list(range(5, 5 + 3 * times))
    assert read(counter.ctypes.data) == 5 + 3 * times


def test_one_thread_at_a_time_has_the_lock():
    lock, total, times = np.array([0]), np.array([0]), 2_000
    threads = [
        threading.Thread(target=add_in_turn, args=(lock.ctypes.data, total.ctypes.data, times))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (int(total[0]), int(lock[0])) == (3 * times, 0)
