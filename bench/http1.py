"""Just enough HTTP/1.1 for a load generator and a sink that cost little beside what they measure."""

from collections.abc import Sequence

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


def message_length(data: bytes | bytearray) -> int | None:
    """Bytes of the first message in `data`, head and body; None while its head is not complete."""
    end = data.find(HEAD_END)
    if end < 0:
        return None
    head = bytes(data[:end]).lower()
    at = head.find(LENGTH)
    length = int(head[at + len(LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return end + len(HEAD_END) + length


def post(path: str, content_type: str, body: bytes, fields: Sequence[str] = ()) -> bytes:
    """A POST request on a connection that stays open, with more header fields."""
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, *fields]).encode() + HEAD_END + body
