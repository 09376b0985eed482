"""Messages as the streams have them, and how they are read there, whether or not a consumer has given them."""

from datetime import UTC, datetime, timedelta

import msgspec

from collector.queue.jetstream.connection import ANSWER_SECONDS, Connection, raise_error


class LetterBody(msgspec.Struct, frozen=True, rename="camel"):
    """A dead letter as it is stored."""

    app_id: str
    reason: str
    buried_ms: int
    event: msgspec.Raw


class Stored(msgspec.Struct, frozen=True):
    """A message as the stream has it."""

    sequence: int
    subject: str
    when: datetime
    data: bytes


async def first_message(connection: Connection, stream: str, *, after: int = 0, subject: str = ">") -> Stored | None:
    """The stream's first message behind a number; None where there is none.

    Raises QueueUnavailable, ServerError.
    """
    body = {"seq": after + 1, "next_by_subj": subject}
    message = await connection.ask(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(body), ANSWER_SECONDS)
    headers = message.headers or {}
    if headers.get("Status") == "404":
        return None
    if (status := headers.get("Status")) is not None:
        raise_error({"code": int(status), "description": headers.get("Description", "no description")})
    return Stored(
        int(headers["Nats-Sequence"]),
        headers["Nats-Subject"],
        time_of(headers["Nats-Time-Stamp"]),
        message.data,
    )


def time_of(text: str) -> datetime:
    """A time of the server's, to the microsecond."""
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC) + timedelta(microseconds=int(rest[:6].ljust(6, "0") or 0))
