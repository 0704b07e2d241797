"""Two digests are equal where the contents are, file by file in their order.

Alone: pytest tests/files/test_digest.py
"""

import os

import pytest

from fastmtp_sglang.files.digest import digest


@pytest.fixture
def write(tmp_path):
    """Files of these contents, under names of their own."""

    def write(*contents: bytes):
        paths = [tmp_path / f"{len(list(tmp_path.iterdir())) + i}" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return paths

    return write


def test_contents_count_and_names_and_dates_do_not(write):
    first, second = write(b"a" * 300_000, b"b"), write(b"a" * 300_000, b"b")
    os.utime(second[0], (0, 0))
    assert digest(first) == digest(second) == digest(iter(first))
    assert len(digest(first)) == 32
    int(digest(first), 16)


def test_a_change_of_the_same_size_and_date_is_seen(write):
    (path,) = write(b"abc")
    before, date = digest([path]), path.stat().st_mtime_ns
    path.write_bytes(b"abd")
    os.utime(path, ns=(date, date))
    assert digest([path]) != before


def test_order_number_and_borders_of_files_count(write):
    """The same bytes, cut or ordered otherwise, are other files."""
    layouts = [[], [b""], [b"", b""], [b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"c", b"ab"]]
    assert len({digest(write(*layout)) for layout in layouts}) == len(layouts)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        digest([tmp_path / "none"])
