"""The rules between settings: which values, each allowed by itself, do not go together.

Each is asked for where it concerns what the program will do: who only looks at a queue lets nothing in and nothing out.
"""

import grp
import pwd
from typing import NamedTuple
from urllib.parse import urlsplit

from collector.config.kinds import Address, UnixUrl
from collector.config.model import JETSTREAM_MESSAGE_BYTES, Access, Config, Events
from collector.config.tokens import read_tokens
from collector.errors import ConfigInvalid

_ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - told apart, not bound


class Problem(NamedTuple):
    """One thing wrong with the configuration: the key, what stands there (never a secret), what would be right."""

    key: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def queue_problems(config: Config) -> list[Problem]:
    """What is amiss with the queue: what its backend does not have, ways to sign in that are given by half or twice."""
    ours, found = config.jetstream, []
    if config.queue.backend == "jetstream" and config.queue.keep_delivered:
        found.append(Problem("queue.keep_delivered", 'not with queue.backend = "jetstream"', 'allowed there: "0s"'))
    if config.queue.backend == "jetstream" and (longest := _longest_line(config.events)) > JETSTREAM_MESSAGE_BYTES:
        limits = "with max_email_chars, max_event_name_chars and keep_fields an event may take"
        allowed = f'allowed with queue.backend = "jetstream": {JETSTREAM_MESSAGE_BYTES}'
        found.append(Problem("events.max_kept_bytes", f"{limits} {longest} bytes", allowed))
    if ours.password is not None and ours.user is None:
        found.append(Problem("jetstream.user", "missing", "jetstream.password needs it"))
    ways = [name for name in ("user", "credentials_file", "nkey_file") if getattr(ours, name) is not None]
    if len(ways) > 1:
        named = " and ".join(f"jetstream.{name}" for name in ways)
        found.append(Problem(f"jetstream.{ways[0]}", f"{named} are given", "allowed: one of them"))
    if ours.key_file is not None and ours.certificate_file is None:
        found.append(Problem("jetstream.certificate_file", "missing", "jetstream.key_file needs it"))
    return found


def _longest_line(events: Events) -> int:
    """Bytes that an event's line may take in the queue, at six a character, as JSON writes control characters."""
    texts = events.max_email_chars + events.max_event_name_chars + sum(map(len, events.keep_fields))
    return 6 * texts + events.max_kept_bytes + 100 + 4 * len(events.keep_fields)


def way_out_problems(config: Config) -> list[Problem]:
    """What is amiss with the way out, where that is to a central collector."""
    url, found = config.forward.url, []
    if url is None:
        return []
    if _leads_back(config):
        reason = "is where this collector itself listens: all its events would come back as duplicates"
        found.append(Problem("forward.url", f"{str(url)!r} {reason}", "allowed: another collector"))
    if config.gateway.operations:
        remedy = "allowed: none beside forward.url; they are the central collector's to pass on"
        found.append(Problem("gateway.operations", ", ".join(config.gateway.operations), remedy))
    return found


def way_in_problems(config: Config) -> list[Problem]:
    """What is amiss with the ways in: those that any other machine could use, and those that cannot be opened.

    The file of tokens is read, where there is one.
    """
    access = config.access
    found = []
    if access.tokens_file is not None:
        try:
            read_tokens(access.tokens_file)
        except ConfigInvalid as error:
            key, _, rest = str(error).partition(": ")
            found.append(Problem(key, rest))
    for key, protocol, listen in (("http.listen", "TCP", config.http.listen), ("udp.listen", "UDP", config.udp.listen)):
        if listen is not None and (reach := exposure(protocol, listen, access)):
            found.append(Problem(key, reach))
    if config.unix.owner is not None and (stranger := _stranger(config.unix.owner)):
        found.append(Problem("unix.owner", f"{config.unix.owner!r}: there is no {stranger} on this machine"))
    if config.unix.stream is not None and config.unix.stream == config.unix.datagram:
        found.append(
            Problem("unix.datagram", repr(str(config.unix.datagram)), "allowed: another file than unix.stream")
        )
    return found


def exposure(protocol: str, listen: Address, access: Access) -> str | None:
    """Why there must be no socket for TCP or UDP: any machine could send to it. None where that is not so, or allowed.

    Datagrams carry no token.
    """
    asks_for_tokens = protocol == "TCP" and access.tokens_file is not None
    if listen.is_loopback or access.allow_unauthenticated or asks_for_tokens:
        return None
    remedy = "give access.tokens_file, or set" if protocol == "TCP" else "datagrams carry no token; set"
    return f"{str(listen)!r} can be reached from other machines; {remedy} access.allow_unauthenticated = true"


def _stranger(owner: str) -> str | None:
    """Which of USER:GROUP this machine does not know; numbers need not be known."""
    user, _, group = owner.partition(":")
    for what, name, look_up in (("user", user, pwd.getpwnam), ("group", group, grp.getgrnam)):
        if name and not name.isdecimal():
            try:
                look_up(name)
            except KeyError:
                return f"{what} {name!r}"
    return None


def _leads_back(config: Config) -> bool:
    """Whether what is forwarded would come straight back, as far as an address tells."""
    url, listen = config.forward.url, config.http.listen
    if url is None or isinstance(url, UnixUrl):
        return url is not None and url.path == config.unix.stream
    parts = urlsplit(url)
    there = Address(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    is_here = there.host == listen.host or (there.is_loopback and (listen.is_loopback or listen.host in _ANYWHERE))
    return is_here and there.port == listen.port
