"""Groups of tests that one process runs: `@pytest.mark.xdist_group(name)`."""

import pytest
from _pytest.nodeid import NodeId


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-xdist 3.8 writes the group into the `_nodeid` of a test, pytest 9.2 reads its `_id`:
    without this every test goes to any process."""
    for item in items:
        grouped = vars(item).get("_nodeid")
        if grouped is not None:
            item._id = NodeId.parse(grouped)
