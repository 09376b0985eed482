"""How fast the export operations are asked for."""

from aiolimiter import AsyncLimiter

from collector.contract.models import EXPORT_REQUESTS_PER_SECOND

EXPORT_SPACING_SECONDS = 1.1 / EXPORT_REQUESTS_PER_SECOND
"""A tenth more than the limit asks for: requests do not arrive as evenly as they leave, and at exactly 20 a second one
that is held up for a moment has the 21st after it refused."""


def export_limiter() -> AsyncLimiter:
    """Lets a request through at a time, evenly spaced: a bucket that fills up would let 40 into the first second."""
    return AsyncLimiter(1, EXPORT_SPACING_SECONDS)
