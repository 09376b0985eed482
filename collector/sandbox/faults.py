"""Failures on demand: which requests they hit, and what they do to them (pure)."""

import copy
import difflib
import re
from collections.abc import Sequence
from typing import Annotated

import msgspec

from collector.contract.operations import BY_ID
from collector.errors import UNPARSABLE
from collector.sandbox import uploads

OPERATIONS = (*BY_ID, uploads.OPERATION, "*")
Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""But for the tab, no header's value has one (RFC 9110 section 5.5)."""


class Fault(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One failure. A request is hit if everything that is given here fits it; the first fault that fits acts.

    `after` lets the operation be carried out first, so that upstream has acted and its client does not know.
    A fault with nothing but a delay answers late, but truly.
    """

    operation: str = "publishUsageEvents"
    """One of `OPERATIONS`: the contract's operation ID, `upload` for the PUT of a file, or `*` for all."""
    app_id: str | None = None
    event_name: str | None = None
    """Hits requests that contain an event of this name."""
    email: str | None = None
    """Hits requests that contain an event of this address."""
    more_than: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Hits requests with more events than this."""

    delay_seconds: Seconds = 0.0
    cut: bool = False
    """Closes the connection instead of answering."""
    raw: str = ""
    """What goes over the line before it is cut, as it is: half an answer, for one, or what is none at all (Latin-1)."""
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    headers: dict[str, str] = {}
    body: str = ""
    after: bool = False

    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """How many more requests it hits; for ever without."""

    def __post_init__(self) -> None:
        """Raises ValueError for what would do nothing, or never hit, whatever is sent."""
        if self.operation not in OPERATIONS:
            nearest = difflib.get_close_matches(self.operation, OPERATIONS, 1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ValueError(f"operation {self.operation!r}: unknown; {hint}allowed: {', '.join(OPERATIONS)}")
        if self.raw and not self.cut:
            raise ValueError("raw is for a connection that is cut: without cut it does nothing")
        if self.status is None and (self.headers or self.body):
            raise ValueError("headers and body are those of a status: without one they do nothing")
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or _CONTROLS.search(value):
                raise ValueError(f"headers: {name!r}: {value!r} is no header")

    def hits(self, operation: str, app_id: str | None, events: Sequence[tuple[str, str]]) -> bool:
        """Whether a request is hit; `events` are pairs of e-mail address and event name."""
        return (
            self.operation in {operation, "*"}
            and self.app_id in {None, app_id}
            and (self.event_name is None or any(name == self.event_name for _, name in events))
            and (self.email is None or any(email == self.email for email, _ in events))
            and (self.more_than is None or len(events) > self.more_than)
        )

    @property
    def about(self) -> str:
        """What it does, in a few words."""
        parts = [f"{self.delay_seconds:g} s late"] if self.delay_seconds else []
        if self.cut or self.status is not None:
            parts.append(("cut" if self.cut else str(self.status)) + (" after acting" if self.after else ""))
        return ", ".join(parts) or "none"


class Faults:
    """The faults in force, in order. Its own copies: it counts down what is left of each, and callers keep theirs."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.set(faults)

    def set(self, faults: Sequence[Fault]) -> None:
        """These and no others are in force."""
        self._faults = [copy.copy(fault) for fault in faults]

    def list(self) -> Sequence[Fault]:
        """What is in force, with the times that are left."""
        return tuple(copy.copy(fault) for fault in self._faults)

    def draw(self, operation: str, app_id: str | None = None, events: Sequence[tuple[str, str]] = ()) -> Fault | None:
        """The fault that hits this request, if any; uses up one of its times."""
        for fault in self._faults:
            if fault.hits(operation, app_id, events):
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault
        return None


class FaultScript(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /_sandbox/faults` and a script file hold."""

    faults: list[Fault]


def read_faults(script: bytes) -> list[Fault]:
    """The faults of a script. Raises ValueError that says what is wrong with it."""
    try:
        return msgspec.json.decode(script, type=FaultScript).faults
    except UNPARSABLE as error:
        raise ValueError(f'{error}; expected {{"faults": [...]}}') from None
