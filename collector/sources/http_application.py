"""What is served over HTTP, and what one server puts up with."""

from typing import Protocol

import msgspec

from collector.sources.http_message import Answer, Refusal, Request
from collector.sources.known_heads import Begin

BODY_STEP_BYTES = 64 * 2**10
"""A body's deadline is renewed with each step that has come: a slow line is fine, a dripping one is not."""


class ConnectionLimits(msgspec.Struct, frozen=True):
    """What one server puts up with. `head_bytes` is the request line with all header fields."""

    head_bytes: int
    head_seconds: float
    body_seconds: float
    """Time for each `BODY_STEP_BYTES` of a body, or for what is left of it."""
    idle_seconds: float
    connections: int
    requests_in_flight: int


class Application(Protocol):
    """What is served."""

    async def answer(self, request: Request) -> Answer | None:
        """The answer to a request; None where nobody is left to hear it. Raises nothing."""
        ...

    def is_look(self, request: Request) -> bool:
        """It asks how the collector is, which is answered also where connections or requests are too many."""
        ...

    def refuse(self, refusal: Refusal) -> Answer:
        """The answer to what is no proper request."""
        ...

    def begin(self, request: Request) -> Begin | None:
        """What answers whole requests with the same head as this one; None where each must be read by itself."""
        ...
