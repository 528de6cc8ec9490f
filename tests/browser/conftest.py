"""The browser that pages are looked at with."""

import shutil

import pytest


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if not found:
        pytest.fail("there is no chromium; run `scripts/host-packages browser`", pytrace=False)
    return found
