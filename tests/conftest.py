"""How the suite is spread over processes: `make test` runs one per core with pytest-xdist."""

from pathlib import Path

import pytest

_SERVING = Path(__file__).parent / "serving"


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Keep a file's tests together, and all tests of the shared servers.

    Those take as long as all others, so one process starts with them.
    """
    for item in items:
        together = "servers" if _SERVING in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(together))
    items.sort(key=lambda item: _SERVING not in item.path.parents)
