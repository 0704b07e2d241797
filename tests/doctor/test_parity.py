"""What is said to work beside SGLang's EAGLE is shown by a test.

Alone: pytest tests/doctor/test_parity.py
"""

from pathlib import Path

from fastmtp_sglang.doctor.parity import PARITY, path_of

ROOT = Path(__file__).parents[2]


def test_what_works_is_shown_by_a_test():
    for feature in PARITY:
        is_test = (ROOT / path_of(feature.shown_by)).is_file()
        assert is_test != feature.fastmtp.startswith("not proven"), feature.name


def test_no_feature_is_listed_twice():
    names = [feature.name for feature in PARITY]
    assert len(set(names)) == len(names)
