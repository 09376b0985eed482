"""Who may post (pure): bearer tokens, and what keeps web pages from posting through a browser on this machine.

A page on the web can make its visitor's browser send requests to 127.0.0.1. Three things stop it here: a request that
carries `Origin` or comes from another site by `Sec-Fetch-Site` is a browser's and is refused; no answer has CORS
headers, so a preflight never succeeds; and where no token is asked for, `Host` must be an address or a name of ours, so
that a name which the page's owner points at 127.0.0.1 (DNS rebinding) is of no use.
"""

import base64
import functools
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping

from collector.sources.http_message import Refusal

FIELDS = ("host", "origin", "sec-fetch-site", "authorization")
"""All that is looked at of a request's header fields."""


class Guard:
    """Decides by a request's header fields. Without `tokens` none is asked for."""

    def __init__(self, *, tokens: Iterable[str] = (), allowed_hosts: Iterable[str] = ()) -> None:
        self._digests: tuple[bytes, ...] = ()
        self._allowed_hosts: frozenset[str] = frozenset()
        self.use_hosts(allowed_hosts)
        self.use_tokens(tokens)

    def use_hosts(self, names: Iterable[str]) -> None:
        """From now on these are the names by which the collector may be called, beside localhost."""
        self._allowed_hosts = frozenset(name.lower() for name in names)

    def use_tokens(self, tokens: Iterable[str]) -> None:
        """From now on these are the tokens."""
        self._digests = tuple(_digest(token.encode()) for token in tokens)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raises Refusal where the request was meant for some other name."""
        host = headers.get("host")
        if host is None or self._digests or _is_local(host) or _name(host) in self._allowed_hosts:
            return
        raise Refusal(421, f"Host: {host[:80]}; expected an address, localhost or one of access.allowed_hosts", "host")

    def check_sender(self, headers: Mapping[str, str]) -> None:
        """Raises Refusal for a browser's page, and for who has not the token that is asked for."""
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            raise Refusal(403, "web pages may not post here; send from a program, without Origin", "origin")
        if self._digests and not self._knows(headers.get("authorization", "")):
            raise Refusal(
                401,
                "Authorization: missing or unknown; expected Bearer and one of access.tokens_file's tokens",
                "token",
                {"WWW-Authenticate": "Bearer"},
            )

    def check_viewer(self, headers: Mapping[str, str]) -> None:
        """Raises Refusal for who may not post, and so may not see names and reasons either.

        A browser asks its user for the token, as a password with any name. It sends that password again by itself, also
        with a request that a page of another site makes: so the password serves for looking only.
        """
        authorization = headers.get("authorization", "")
        if self._digests and not self._knows(_bearer_of_basic(authorization) or authorization):
            raise Refusal(
                401,
                "Authorization: missing or unknown; expected one of access.tokens_file's tokens, as Bearer or as "
                "password",
                "token",
                {"WWW-Authenticate": 'Basic realm="collector", Bearer'},
            )

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        presented = _digest(token.strip().encode("latin-1", "replace"))  # the bytes that came
        # All are compared, and digests of one length, so that the time taken tells nothing.
        matches = [hmac.compare_digest(presented, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _bearer_of_basic(authorization: str) -> str | None:
    """Basic credentials (RFC 7617) as Bearer ones, by their password; None for others."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, _, password = base64.b64decode(credentials, validate=True).decode("latin-1").partition(":")
    except ValueError:  # no base64, or characters that are not even ASCII
        return None
    return f"Bearer {password}"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _name(host: str) -> str:
    """A Host field's name or address, without its port."""
    name, colon, port = host.rpartition(":")
    has_port = colon and (port.isdigit() or (not port and not name.endswith(":")))  # it may be empty (RFC 3986, 3.2.3)
    return (name if has_port else host).strip("[]").lower()


@functools.lru_cache(maxsize=256)
def _is_local(host: str) -> bool:
    """An address cannot be rebound, and localhost is looked up by no name server (RFC 6761 section 6.3)."""
    name = _name(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
