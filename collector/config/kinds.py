"""What a configuration value may look like: one parser a kind, each able to say what it allows.

People write durations and sizes as `"30d"`, `"500ms"`, `"512MiB"`; the program holds seconds and bytes.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NewType
from urllib.parse import urlsplit

from collector.events import APP_ID_EXPECTED, is_app_id

Seconds = NewType("Seconds", float)
Bytes = NewType("Bytes", int)


class Secret:
    """Text that never shows itself: not in repr, str, logs or errors. `reveal()` is the one way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that must send it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Address(NamedTuple):
    """A TCP or UDP address; port 0 lets the kernel choose."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """No other machine can reach it. What a name stands for is not known here, but for localhost."""
        try:
            address = ipaddress.ip_address(self.host)
            return (getattr(address, "ipv4_mapped", None) or address).is_loopback  # alike in every Python
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixUrl(NamedTuple):
    """A collector that listens on a Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


class Refused(ValueError):
    """A value that is refused for a reason of its own; the message holds no secret, even where the value does."""


class Kind(NamedTuple):
    """How one sort of value is read, what it allows (for people), what it is for, and how a default is written."""

    about: str
    allowed: str
    parse: Callable[[Any], Any]
    write: Callable[[Any], str]


_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BINARY_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE_UNITS = _BINARY_UNITS | {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_NAME = re.compile(r'[^"\\\x00-\x1f]+')
_FILE_MODE = re.compile(r"0?[0-7]{3}")
_OWNER = re.compile(r"[^:\0]+:?[^:\0]*|:[^:\0]+")
_MAX_OWNER = 2**32 - 2  # chown(2) takes the next one for "leave it as it is"
_NATS_URL = re.compile(r"(nats|tls)://[^\s/?#@,]+:\d{1,5}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_URL = re.compile(r"[^\s?#@\x00-\x1f]+")
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", re.ASCII)


def _quantity(value: Any, units: dict[str, float] | dict[str, int]) -> float:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError(value)
    return float(match[1]) * units[match[2]]


def seconds(text: str) -> Seconds:
    """`"1.5h"` as seconds. Raises ValueError."""
    return Seconds(_quantity(text, _DURATION_UNITS))


def _write_largest_unit(value: float, units: dict[str, float] | dict[str, int]) -> str:
    for unit, factor in sorted(units.items(), key=lambda item: -item[1]):
        if value >= factor and (value / factor).is_integer():
            return f'"{value / factor:.0f}{unit}"'
    unit, factor = next(iter(units.items()))
    return f'"{round(value / factor, 6):g}{unit}"'


def duration(about: str, minimum: str, maximum: str) -> Kind:
    """A length of time between two others."""
    low, high = seconds(minimum), seconds(maximum)

    def parse(value: Any) -> Seconds:
        result = Seconds(_quantity(value, _DURATION_UNITS))
        if not low <= result <= high:
            raise ValueError(value)
        return result

    allowed = f'a duration from "{minimum}" to "{maximum}", in {", ".join(_DURATION_UNITS)}'
    return Kind(about, allowed, parse, lambda value: _write_largest_unit(value, _DURATION_UNITS))


def size(about: str, minimum: str, maximum: str) -> Kind:
    """An amount of bytes between two others."""
    low, high = _quantity(minimum, _SIZE_UNITS), _quantity(maximum, _SIZE_UNITS)

    def parse(value: Any) -> Bytes:
        result = _quantity(value, _SIZE_UNITS)
        if not low <= result <= high:
            raise ValueError(value)
        return Bytes(int(result))

    allowed = f'a size from "{minimum}" to "{maximum}", in {", ".join(_SIZE_UNITS)}'
    return Kind(about, allowed, parse, lambda value: _write_largest_unit(value, _BINARY_UNITS))


def integer(about: str, minimum: int, maximum: int) -> Kind:
    """A whole number between two others."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(value)
        result = int(value)
        if not minimum <= result <= maximum:
            raise ValueError(value)
        return result

    return Kind(about, f"a whole number from {minimum} to {maximum}", parse, str)


def _quoted(value: Any) -> str:
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def is_sendable(text: str) -> bool:
    """Whether UTF-8 has it. A lone surrogate it has not: with these Python stands for bytes of a name that is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_host(name: str) -> bool:
    """Whether a host can have this name: one that cannot be encoded (RFC 3490) is not even looked up."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def _sendable(value: Any) -> str:
    if not is_sendable(_text(value)):
        raise ValueError(value)
    return str(value)


def text(about: str) -> Kind:
    """Text, taken as it is."""
    return Kind(about, "text that is not empty", _sendable, _quoted)


def app_id(about: str) -> Kind:
    """The ID of an app, as events may bear it."""

    def parse(value: Any) -> str:
        if not is_app_id(_sendable(value)):
            raise ValueError(value)
        return str(value)

    return Kind(about, APP_ID_EXPECTED, parse, _quoted)


def choice(about: str, *options: str) -> Kind:
    """One of a few words."""

    def parse(value: Any) -> str:
        if value not in options:
            raise ValueError(value)
        return str(value)

    return Kind(about, "one of " + ", ".join(f'"{option}"' for option in options), parse, _quoted)


def flag(about: str) -> Kind:
    """Yes or no; in the environment `true` or `false`."""
    words = {True: True, False: False, "true": True, "false": False}

    def parse(value: Any) -> bool:
        if not isinstance(value, bool | str) or value not in words:
            raise ValueError(value)
        return words[value]

    return Kind(about, "true or false", parse, lambda value: str(value).lower())


def file_mode(about: str) -> Kind:
    """Permissions of a file, in octal as chmod takes them."""

    def parse(value: Any) -> int:
        if not isinstance(value, str) or not _FILE_MODE.fullmatch(value):
            raise ValueError(value)
        return int(value, 8)

    return Kind(about, 'an octal mode from "000" to "0777"', parse, lambda value: f'"{value:04o}"')


def owner(about: str) -> Kind:
    """A user, a group or both, as chown takes them; whether this machine knows such names is not looked up here."""

    def parse(value: Any) -> str:
        if not _OWNER.fullmatch(_sendable(value)):
            raise ValueError(value)
        if any(int(part) > _MAX_OWNER for part in value.split(":") if part.isdecimal()):
            raise ValueError(value)
        return str(value)

    allowed = f'"user", "user:group" or ":group", each a name or a number up to {_MAX_OWNER}'
    return Kind(about, allowed, parse, _quoted)


def names(about: str) -> Kind:
    """A list of names; in the environment separated by commas."""
    allowed = "a list of names without quotes, backslashes and control characters"
    return _list(about, allowed, lambda entry: _NAME.fullmatch(entry) is not None)


def choices(about: str, *options: str) -> Kind:
    """A list of some of the words; in the environment separated by commas."""
    return _list(about, f"a list of any of {', '.join(options)}", lambda entry: entry in options)


def servers(about: str) -> Kind:
    """A list of NATS servers; in the environment separated by commas. No credentials stand in their URLs."""
    allowed = "a list of nats://HOST:PORT or tls://HOST:PORT, at least one, without user and password"
    kind = _list(about, allowed, lambda entry: _NATS_URL.fullmatch(entry) is not None)

    def parse(value: Any) -> tuple[str, ...]:
        found: tuple[str, ...] = kind.parse(value)
        if not found:
            raise ValueError(value)
        return found

    return kind._replace(parse=parse)


def token(about: str) -> Kind:
    """A name that can be a part of subjects."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not _TOKEN.fullmatch(value):
            raise ValueError(value)
        return value

    return Kind(about, "1 to 64 letters, digits, - and _", parse, _quoted)


def _list(about: str, allowed: str, is_allowed: Callable[[str], bool]) -> Kind:
    def parse(value: Any) -> tuple[str, ...]:
        entries = [entry.strip() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else value
        if not isinstance(entries, list) or not all(isinstance(entry, str) and is_allowed(entry) for entry in entries):
            raise ValueError(value)
        return tuple(dict.fromkeys(entries))

    return Kind(about, allowed, parse, lambda value: f"[{', '.join(map(_quoted, value))}]")


def path(about: str) -> Kind:
    """A place in the file system that logs and answers can name; `~` is the home directory."""
    return Kind(about, "a path in UTF-8", _parse_path, _quoted)


def _parse_path(value: Any) -> Path:
    if "\0" in _text(value):
        raise ValueError(value)
    try:
        found = Path(value).expanduser()
    except RuntimeError as error:
        raise Refused(f"{value!r}: {error}") from error
    _sendable(str(found))
    return found


def secret(about: str) -> Kind:
    """Text that must not be shown, not even when it is wrong."""

    def parse(value: Any) -> Secret:
        if not isinstance(value, str) or not value or not is_sendable(value):
            raise Refused("(not shown)")
        return Secret(value)

    return Kind(about, "text that is not empty", parse, lambda value: _quoted(value.reveal()))


def address(about: str) -> Kind:
    """HOST:PORT; an IPv6 host stands in brackets."""
    return Kind(about, 'HOST:PORT with a port from 0 to 65535, such as "127.0.0.1:8787"', parse_address, _quoted)


def parse_address(value: Any) -> Address:
    """`"127.0.0.1:8787"` or `"[::1]:8787"`. Raises ValueError."""
    host, separator, port = _text(value).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Refused(f'{value!r}: an IPv6 host stands in brackets, such as "[::1]:8787"')
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(value)
    if not is_host(host):
        raise Refused(f"{value!r}: {host!r} can be no host's name")
    return Address(host, int(port))


def url(about: str) -> Kind:
    """An http or https URL without user, query or fragment; a slash at its end is dropped."""
    return Kind(about, "an http:// or https:// URL without user, query or fragment", _parse_url, _quoted)


def url_or_unix(about: str) -> Kind:
    """A URL as above, or `unix:` and the path of a socket's file."""

    def parse(value: Any) -> str | UnixUrl:
        path = _text(value).removeprefix("unix:")
        if path == value:
            return _parse_url(value)
        return UnixUrl(_parse_path(path))

    allowed = "an http:// or https:// URL without user, query or fragment, or unix:PATH"
    return Kind(about, allowed, parse, _quoted)


def _parse_url(value: Any) -> str:
    if "@" in str(value):
        raise Refused("a URL with an @ in it (not shown, for there may be a password before it)")
    parts = urlsplit(_sendable(value))
    if parts.scheme not in {"http", "https"} or not _URL.fullmatch(value) or not is_host(parts.hostname or ""):
        raise ValueError(value)
    _ = parts.port  # raises ValueError where it is no number
    return str(value).rstrip("/")


def url_path(about: str, placeholder: str) -> Kind:
    """The path part of a URL with one placeholder in it."""

    def parse(value: Any) -> str:
        if not _sendable(value).startswith("/") or value.count(placeholder) != 1 or "?" in value or "#" in value:
            raise ValueError(value)
        return str(value)

    return Kind(about, f"a path that starts with / and contains {placeholder} once", parse, _quoted)
