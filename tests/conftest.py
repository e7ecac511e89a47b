"""Settings of the whole suite."""

import os

import pytest

# two workers on two cores: more threads than that wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Files of few tests that take long.
SLOW = ("test_matrix_processes.py", "test_processes.py", "test_resume.py", "test_docs.py", "test_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files come first: of one that came last only one worker would have anything to do."""
    items.sort(key=lambda item: item.path.name not in SLOW)
