"""Every setting, its default, its range and its reason, in one place.

`config.example.toml` is written from this file (`python -m collector.config`), `collector check-config` takes its
ranges from here, and the environment's names follow from it: `[queue] path` is `COLLECTOR_QUEUE__PATH`.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from collector.config import kinds
from collector.config.kinds import Address, Bytes, Seconds, Secret

DAY = 86_400.0
MiB = 2**20


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """Where apps post events."""

    listen: Annotated[Address, kinds.address("Address of the HTTP source. Port 0 takes a free one and logs it.")] = (
        Address("127.0.0.1", 8787)
    )
    max_request_bytes: Annotated[
        Bytes,
        kinds.size(
            "Largest request body; above it the answer is 413. 16 MiB holds about 150,000 events.", "1KiB", "1GiB"
        ),
    ] = Bytes(16 * MiB)


class Apps(msgspec.Struct, frozen=True, kw_only=True):
    """Which Productiv app an event belongs to."""

    default: Annotated[
        str | None,
        kinds.text("App of events that come without an appId. Without a default such events are rejected."),
    ] = None


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """What of an event is kept beyond timestamp, email and eventName."""

    keep_fields: Annotated[
        tuple[str, ...],
        kinds.names("Additional fields to keep and forward as they came. All others are dropped and counted."),
    ] = ()


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The durable queue between the sources and upstream."""

    path: Annotated[Path, kinds.path("Directory of the queue. Made if it is missing; on a local file system.")] = Path(
        "collector-queue"
    )
    dedup_retention: Annotated[
        Seconds,
        kinds.duration(
            "How long a key is remembered, counted from receipt; at least as long as any sender may retry.",
            "1s",
            "3650d",
        ),
    ] = Seconds(30 * DAY)
    max_bytes: Annotated[
        Bytes,
        kinds.size(
            "Bytes of events that may wait for delivery; above it new events get 503. About 90 bytes an event.",
            "64KiB",
            "16TiB",
        ),
    ] = Bytes(4096 * MiB)
    max_uncommitted: Annotated[
        Bytes,
        kinds.size(
            "Bytes of events that may wait in memory for their commit; above it new events get 503.", "64KiB", "4GiB"
        ),
    ] = Bytes(64 * MiB)


class Flush(msgspec.Struct, frozen=True, kw_only=True):
    """How events leave for upstream."""

    batch_events: Annotated[
        int, kinds.integer("Most events in one request; 1000 is the contract's limit.", 1, 1000)
    ] = 1000
    linger: Annotated[
        Seconds, kinds.duration("How long the oldest event may wait for its batch to fill up.", "0s", "1h")
    ] = Seconds(1.0)
    max_in_flight: Annotated[int, kinds.integer("Most requests to upstream at one time, over all apps.", 1, 256)] = 4
    backoff_base: Annotated[
        Seconds,
        kinds.duration("Ceiling of the first random wait after a failure; it doubles with each failure.", "1ms", "1h"),
    ] = Seconds(0.5)
    backoff_max: Annotated[
        Seconds, kinds.duration("Ceiling of the random wait after many failures. Retries never end.", "1ms", "1d")
    ] = Seconds(60.0)
    hold_retry: Annotated[
        Seconds,
        kinds.duration("How often a held app (unknown, forbidden, wrong credentials) is tried again.", "10ms", "7d"),
    ] = Seconds(300.0)


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """The Productiv Developer API, or a sandbox in its place."""

    base_url: Annotated[str, kinds.url("Where the API is.")] = "https://public-api.productiv.com"
    token_url: Annotated[str, kinds.url("Where access tokens are issued.")] = (
        "https://login.api.productiv.com/oauth2/token"  # noqa: S105 - a URL
    )
    client_id: Annotated[str | None, kinds.text("OAuth2 client ID. Required.")] = None
    client_secret: Annotated[
        Secret | None,
        kinds.secret(
            "OAuth2 client secret. Required, here or better: in the environment, in client_secret_file, or as the "
            "systemd credential client_secret (LoadCredential=client_secret:FILE)."
        ),
    ] = None
    client_secret_file: Annotated[
        Path | None, kinds.path("File whose content, without the line end, is the client secret.")
    ] = None
    scope: Annotated[str, kinds.text("Scopes asked for, separated by spaces.")] = (
        "https://api.productiv.com/connector.write"
    )
    usage_events_path: Annotated[
        str, kinds.url_path("Path of the usage-events operation under base_url.", "{appId}")
    ] = "/services/push/v1/customer/apps/{appId}/usage-events"
    timeout: Annotated[
        Seconds, kinds.duration("How long one request may take before it counts as failed.", "10ms", "10m")
    ] = Seconds(30.0)


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """What happens on SIGTERM and SIGINT."""

    deadline: Annotated[
        Seconds,
        kinds.duration(
            "How long to go on delivering before the rest stays in the queue for the next start.", "0s", "1h"
        ),
    ] = Seconds(10.0)


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """Logs, on standard error."""

    level: Annotated[str, kinds.choice("Least severe level that is logged.", "debug", "info", "warning", "error")] = (
        "info"
    )
    format: Annotated[str, kinds.choice("auto: console on a terminal, JSON otherwise.", "auto", "console", "json")] = (
        "auto"
    )


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. Every default works but for the credentials, which have none."""

    http: Http = Http()
    apps: Apps = Apps()
    events: Events = Events()
    queue: Queue = Queue()
    flush: Flush = Flush()
    upstream: Upstream = Upstream()
    stop: Stop = Stop()
    log: Log = Log()
