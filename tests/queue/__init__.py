"""The durable queue, from its file up to its protocol."""

import pytest

pytest.register_assert_rewrite("tests.queue.contract")
