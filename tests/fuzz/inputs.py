"""Inputs that are nearly right: samples of every form, damaged in ways that parsers get wrong."""

import random
from collections.abc import Callable

EVENT = '{"timestamp":%d,"email":"%s","eventName":"%s"}'
EMAILS = ["a@example.com", "ü@example.com", "😀@example.com", "A@EXAMPLE.COM", "a@", "@", "", " a@example.com "]
NAMES = ["page_viewed", "e\u0301", "é", "\\u0000", "\\ud83d\\ude00", "\\ud800", "x" * 1025, "\\n", "<script>"]
TIMESTAMPS = [0, 1, -1, 1767225600000, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30]
VALUES = [
    b"null", b"true", b"1.0", b"1e3", b"1e400", b"-0", b"NaN", b'"1"', b"[]", b"{}", b"[" * 2000, b'"\xff"', b'"\x00"',
    b'"\xed\xa0\x80"', b"01", b"+1", b"9" * 400, b'"\\u12"', b"\xef\xbb\xbf", b"//", b"'a'",
]  # fmt: skip
MARKS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r", b"\0", b" ", b"\xff", b"\xc3", b"\xef\xbb\xbf"]


def event(draw: random.Random) -> bytes:
    """One event, mostly sound."""
    if draw.random() < 0.7:
        text = EVENT % (draw.randrange(10**12), f"person{draw.randrange(9)}@example.com", "page_viewed")
    else:
        text = EVENT % (draw.choice(TIMESTAMPS), draw.choice(EMAILS), draw.choice(NAMES))
    written = text.encode()
    if draw.random() < 0.2:
        written = written[:-1] + b',"extra":' + draw.choice(VALUES) + b"}"
    if draw.random() < 0.1:
        written = written.replace(b'"email"', draw.choice([b'"Email"', b'"email","email"', b"email", b'"\\u0065mail"']))
    if draw.random() < 0.1:
        written = written[:-1] + b',"appId":' + draw.choice([*VALUES, b'"wiki"', b'"."', b'""']) + b"}"
    return written


def array(draw: random.Random) -> bytes:
    return b"[" + b",".join(event(draw) for _ in range(draw.randrange(5))) + b"]"


def envelope(draw: random.Random) -> bytes:
    return b'{"events":' + array(draw) + b"}"


def lines(draw: random.Random) -> bytes:
    return draw.choice([b"\n", b"\r\n", b"", b" "]).join(event(draw) for _ in range(draw.randrange(6)))


BODIES: list[Callable[[random.Random], bytes]] = [event, array, envelope, lines]


def damaged(draw: random.Random, data: bytes) -> bytes:
    """The data with a few bytes changed, lost, doubled or put in."""
    changed = bytearray(data)
    for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0:
                changed[at:at] = draw.choice(MARKS)
            case 1:
                changed[at:at] = draw.choice(VALUES)
            case 2:
                del changed[at : at + draw.choice([1, 1, 2, 20])]
            case 3:
                changed[at:at] = changed[at : at + draw.randrange(40)]
            case 4:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            case _:
                del changed[at:]
    return bytes(changed)


def body(draw: random.Random) -> bytes:
    return damaged(draw, draw.choice(BODIES)(draw))


JSON = b"Content-Type: application/json\r\n"
PUSH = b"/services/push/v1/customer/apps/wiki/usage-events"
HEADS = [
    b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n" + JSON,
    b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n",
    b"POST " + PUSH + b" HTTP/1.1\r\nHost: [::1]\r\n" + JSON,
    b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n",
    b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n" + JSON,
]


def requests(draw: random.Random) -> bytes:
    """A few HTTP requests in a row, whole or damaged."""
    message = b""
    for _ in range(draw.randrange(1, 4)):
        content = draw.choice(BODIES)(draw)
        head = draw.choice(HEADS)
        if draw.random() < 0.1:
            head += b"Content-Encoding: " + draw.choice([b"gzip", b"deflate", b"zstd", b"br"]) + b"\r\n"
        if draw.random() < 0.3:
            half = len(content) // 2
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:half], content[half:]) if part)
            message += head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        else:
            message += head + b"Content-Length: %d\r\n\r\n" % len(content) + content
    return damaged(draw, message)


SECRET = "s3cret-of-mine"


def configuration(draw: random.Random) -> bytes:
    """A configuration file, damaged."""
    sections = {
        b"http": [b'listen = "127.0.0.1:0"', b'max_request_bytes = "1MiB"', b"max_connections = 5"],
        b"events": [b'keep_fields = ["a", "b"]', b"max_per_request = 10"],
        b"queue": [b'path = "q"', b'dedup_retention = "30d"'],
        b"upstream": [
            b'base_url = "https://a.example.com"',
            b'client_secret = "%b"' % SECRET.encode(),
            b'timeout = "5s"',
        ],
        b"unix": [b'mode = "0660"'],
    }
    text = b"".join(
        b"[%b]\n%b\n" % (name, b"\n".join(draw.sample(keys, draw.randrange(len(keys) + 1))))
        for name, keys in sections.items()
        if draw.random() < 0.6
    )
    return damaged(draw, text)
