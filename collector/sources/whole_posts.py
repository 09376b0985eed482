"""Small posts of JSON that have come whole: those of one turn of the loop are taken together.

Over many connections several posts of one event come in a turn. Read in a row and put together they take less of the
processor, in the loop and in the writer: over 32 connections a fifth, over 128 a third (bench/README.md). What is
anything else is taken by itself, and so is each post of a row in which something is amiss.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from collector.bodies import BodyFormat
from collector.intake import Intake, Report, Row, Storing
from collector.sources.answers import Answers
from collector.sources.http_body import Memory
from collector.sources.known_heads import Answered


class _Sender(NamedTuple):
    """Who waits to hear of a post: what is called then, the second it came, and the bytes that are held for it."""

    answered: Answered
    started: float
    held: int


class WholePosts:
    """Those of one source. `answered` hears of each, and of None where the program ends before it is known."""

    def __init__(self, intake: Intake, memory: Memory, answers: Answers) -> None:
        self._intake = intake
        self._memory = memory
        self._answers = answers
        self._bodies: list[bytes] = []  # in this turn
        self._senders: list[_Sender] = []

    def add(self, body: bytes, body_format: BodyFormat, app_id: str | None, answered: Answered) -> None:
        """Takes a post, in this turn or at its end. Raises Refusal where too much is in memory."""
        self._memory.hold(len(body))
        sender = _Sender(answered, time.perf_counter(), len(body))
        if body_format is not BodyFormat.JSON or app_id is not None:
            self._take_alone(body, body_format, app_id, sender)
            return
        if not self._bodies:
            asyncio.get_running_loop().call_soon(self._take)
        self._bodies.append(body)
        self._senders.append(sender)

    def _take(self) -> None:
        bodies, senders, most = self._bodies, self._senders, self._intake.row_events
        self._bodies, self._senders = [], []
        for start in range(0, len(bodies), most):
            self._take_row(bodies[start : start + most], senders[start : start + most])

    def _take_row(self, bodies: Sequence[bytes], senders: Sequence[_Sender]) -> None:
        try:
            row = self._intake.begin_row(bodies)
        except Exception as error:  # noqa: BLE001 - none may end the loop's turn
            self._refuse(senders, error)
            return
        if row is not None:
            row.verdicts.add_done_callback(lambda _: self._tell_row(senders, row))
        else:
            for body, sender in zip(bodies, senders, strict=True):
                self._take_alone(body, BodyFormat.JSON, None, sender)

    def _tell_row(self, senders: Sequence[_Sender], row: Row) -> None:
        try:
            duplicates = row.duplicates()
        except asyncio.CancelledError:
            self._give_up(senders)
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(senders, error)
        else:
            self._memory.release(sum([sender.held for sender in senders]))
            answers = self._answers.taken_in_a_row(duplicates, [sender.started for sender in senders])
            for sender, answer in zip(senders, answers, strict=True):
                sender.answered(answer)

    def _take_alone(self, body: bytes, body_format: BodyFormat, app_id: str | None, sender: _Sender) -> None:
        try:
            storing = self._intake.begin(body, body_format, app_id)
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse([sender], error)
        else:
            if storing.verdicts is None:
                self._tell(sender, storing)
            else:
                storing.verdicts.add_done_callback(lambda _: self._tell(sender, storing))

    def _tell(self, sender: _Sender, storing: Storing) -> None:
        report = Report()
        try:
            self._intake.tell(storing, report)
        except asyncio.CancelledError:
            self._give_up([sender])
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse([sender], error)
        else:
            report.conclude()
            self._memory.release(sender.held)
            sender.answered(self._answers.taken(report, sender.started))

    def _refuse(self, senders: Sequence[_Sender], error: Exception) -> None:
        for sender in senders:
            self._memory.release(sender.held)
            sender.answered(self._answers.refused(error))

    def _give_up(self, senders: Sequence[_Sender]) -> None:
        for sender in senders:
            self._memory.release(sender.held)
            sender.answered(None)
