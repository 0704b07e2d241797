"""Engines that the tests of this folder share: operators by one thread and by several."""

import pytest

from fastmtp_sglang.serving.cpu.native.engine import Engine


@pytest.fixture(scope="session")
def engines() -> list[Engine]:
    """With 1 and 2 workers, and with more than this machine has cores to spare."""
    return [Engine(workers) for workers in (1, 2, 5)]


@pytest.fixture(scope="session")
def engine(engines) -> Engine:
    return engines[1]
