"""Published `.pt` id lists: which are read, and which are refused before they can do harm.

Run alone: pytest tests/vocabulary/test_id_list.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.id_list import read_id_list


@pytest.mark.parametrize(
    "content", [[7, 3, 5], (7, 3, 5), torch.tensor([7, 3, 5]), torch.tensor([7, 3, 5]).int()]
)
def test_published_lists_are_read_and_sorted(tmp_path: Path, content):
    torch.save(content, tmp_path / "freq.pt")
    ids = read_id_list(tmp_path / "freq.pt", vocab_size=8)
    assert ids.tolist() == [3, 5, 7]
    assert ids.dtype == torch.int64


class Attack:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 1, 2], "holds 1 ids more than once, the first of them 1"),
        ([1, -2], "holds the negative id -2"),
        ([1, 8], "holds id 8, but the target has 8 rows"),
        ([1, 2**70], "does not fit into 64 bits"),
        ([], "holds no ids"),
        ([1, 2.0], "entry 1 is 2.0, a float"),
        ([True, False], "entry 0 is True, a bool"),
        ([1, "2"], "entry 1 is '2', a str"),
        ([[1], [2]], r"entry 0 is \[1\], a list"),
        (torch.tensor([1.0]), "holds torch.float32 values"),
        (torch.tensor([True]), "holds booleans"),
        (torch.tensor([[1, 2]]), r"has shape \[1, 2\]"),
        ({"ids": [1]}, "holds a dict"),
        (5, "holds a int"),
        (np.array([1, 2]), "not a plain id list"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content, message: str):
    path = tmp_path / "freq.pt"
    torch.save(content, path)
    with pytest.raises(FastMTPError, match=message) as error:
        read_id_list(path, vocab_size=8)
    assert str(path) in str(error.value)


def test_code_in_a_pickle_is_not_run(tmp_path: Path):
    torch.save(Attack(tmp_path / "pwned"), tmp_path / "freq.pt")
    with pytest.raises(FastMTPError, match="Files that need code to load are refused"):
        read_id_list(tmp_path / "freq.pt", vocab_size=8)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 no zip", b"[1, 2, 3]"])
def test_files_that_are_no_pickle_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "freq.pt").write_bytes(content)
    with pytest.raises(FastMTPError, match="not a plain id list"):
        read_id_list(tmp_path / "freq.pt", vocab_size=8)


def test_a_missing_file_is_not_the_name_of_a_download():
    with pytest.raises(FastMTPError, match=r"no such file\. Nothing is downloaded"):
        read_id_list(Path("thunlp/LLaMA3-Instruct-8B-FR-Spec/freq_32768.pt"), vocab_size=8)
