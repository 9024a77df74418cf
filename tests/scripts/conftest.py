"""The scripts as modules: they are run, not installed."""

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.fixture(scope="session")
def load_script():
    """`load_script(name)`: a script as a module, which finds its neighbors as it does when it is run."""
    sys.path.insert(0, SCRIPTS)
    yield importlib.import_module
    sys.path.remove(SCRIPTS)
