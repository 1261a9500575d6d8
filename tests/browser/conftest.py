"""Servers over a copy of the tiny study's store, and a browser that looks at them."""

import shutil

import pytest

from tests.browser import driver
from tests.conftest import EXPLORED


def pytest_collection_modifyitems(items):
    reason = driver.missing()
    for item in items:
        if "tests/browser" in str(item.fspath):
            item.add_marker(pytest.mark.browser)
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"browser tests: {reason}"))


@pytest.fixture(scope="module")
def folder(explored, tmp_path_factory):
    """A folder with a copy of the store, which the environment of this module's servers names."""
    place = tmp_path_factory.mktemp("browser")
    shutil.copytree(explored, place / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PPR_STORE", str(place / "mlruns"))
        patch.setenv("PPR_DATA", str(explored.parent / "data"))
        yield place


@pytest.fixture(scope="module")
def notebook(folder):
    return driver.explorer_notebook(folder, EXPLORED)


@pytest.fixture(scope="module")
def page():
    with driver.browser() as opened:
        yield opened
