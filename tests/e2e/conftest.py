"""An upstream that takes every app."""

import pytest

from collector.sandbox.server import Sandbox


@pytest.fixture
def sandbox(upstream: Sandbox) -> Sandbox:
    return upstream
