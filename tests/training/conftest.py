"""The tiny target and head of `pairs`, made once for all tests of training."""

import pairs
import pytest


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> pairs.Pair:
    return pairs.make_pair(tmp_path_factory.mktemp("pair"))
