"""Every setting, its default, its range and its reason, in one place.

`config.example.toml` is written from this file (`python -m collector.config`), `collector check-config` takes its
ranges from here, and the environment's names follow from it: `[queue] path` is `COLLECTOR_QUEUE__PATH`.
"""

from pathlib import Path
from typing import Annotated

import msgspec

from collector.config import kinds
from collector.config.kinds import Address, Bytes, Seconds, Secret, UnixUrl
from collector.contract.operations import OPERATIONS
from collector.events import EMAIL_MAX_CHARS, EVENT_NAME_MAX_CHARS, KEPT_MAX_BYTES

DAY = 86_400.0
MiB = 2**20

NEEDS_RESTART = object()
"""Marks a key that a running collector keeps as it was at its start. A reload brings all others into force."""


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """Where apps post events."""

    listen: Annotated[
        Address, kinds.address("Address of the HTTP source. Port 0 takes a free one and logs it."), NEEDS_RESTART
    ] = Address("127.0.0.1", 8787)
    max_request_bytes: Annotated[
        Bytes,
        kinds.size(
            "Largest JSON body as it is sent; it is held whole in memory, and above this the answer is 413. "
            "16 MiB holds about 150,000 events. NDJSON is stored as it comes and may be longer.",
            "1KiB",
            "1GiB",
        ),
    ] = Bytes(16 * MiB)
    max_decompressed_bytes: Annotated[
        Bytes, kinds.size("Largest JSON body after decompression; above it the answer is 413.", "1KiB", "1GiB")
    ] = Bytes(32 * MiB)
    max_stream_bytes: Annotated[
        Bytes,
        kinds.size("Longest NDJSON body after decompression. What came before is stored and stays.", "1KiB", "1024TiB"),
    ] = Bytes(1024 * 1024 * MiB)
    max_held_bytes: Annotated[
        Bytes,
        kinds.size(
            "Bytes of JSON bodies in memory, over all connections; above it new ones get 503. Twice to four times as "
            "much memory is used while they are parsed.",
            "1KiB",
            "64GiB",
        ),
    ] = Bytes(64 * MiB)
    max_header_bytes: Annotated[
        Bytes, kinds.size("Largest request line with all header fields; above it the answer is 431.", "1KiB", "1MiB")
    ] = Bytes(16 * 1024)
    max_connections: Annotated[
        int,
        kinds.integer(
            "Connections open at one time; above it new ones get 503, but for eight that only look (/healthz, /readyz, "
            "/metrics, status). Half of the 1024 files that a process may have open by default.",
            1,
            100_000,
        ),
    ] = 512
    max_in_flight: Annotated[
        int,
        kinds.integer(
            "Requests being stored at one time, and bodies above 16 KiB being received; above it new ones get 503.",
            1,
            100_000,
        ),
    ] = 512
    header_timeout: Annotated[
        Seconds, kinds.duration("How long a request's head may take to come, also the first one's.", "1s", "1h")
    ] = Seconds(10.0)
    body_timeout: Annotated[
        Seconds,
        kinds.duration("How long each 64 KiB of a body, or the rest of it, may take to come.", "1s", "1h"),
    ] = Seconds(30.0)
    idle_timeout: Annotated[
        Seconds, kinds.duration("How long a connection may stay open without a request.", "1s", "1d")
    ] = Seconds(75.0)


class Udp(msgspec.Struct, frozen=True, kw_only=True):
    """Where apps send events that nobody answers: fire and forget, every loss counted."""

    listen: Annotated[
        Address | None,
        kinds.address('Address of the UDP source, such as "127.0.0.1:8787". Without it there is none.'),
        NEEDS_RESTART,
    ] = None
    receive_buffer: Annotated[
        Bytes,
        kinds.size(
            "Kernel memory for datagrams that are not read yet; net.core.rmem_max caps it. A small event takes about "
            "1 KiB of it, so 8 MiB holds 80 ms of 100,000 datagrams/s.",
            "64KiB",
            "1GiB",
        ),
        NEEDS_RESTART,
    ] = Bytes(8 * MiB)


class Unix(msgspec.Struct, frozen=True, kw_only=True):
    """Unix sockets for programs on this machine. Their files' mode and owner say who may send; no token does."""

    stream: Annotated[
        Path | None, kinds.path("File of the socket that serves HTTP. Without it there is none."), NEEDS_RESTART
    ] = None
    datagram: Annotated[
        Path | None,
        kinds.path(
            "File of the socket that takes events as UDP does, but makes senders wait. Without it there is none."
        ),
        NEEDS_RESTART,
    ] = None
    mode: Annotated[
        int, kinds.file_mode("Permissions of the sockets' files: whoever may write may send."), NEEDS_RESTART
    ] = 0o660
    owner: Annotated[
        str | None,
        kinds.owner("Who owns the files. Without it, who runs the collector."),
        NEEDS_RESTART,
    ] = None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Who may send events over the network. By default every program on this machine, and no other."""

    tokens_file: Annotated[
        Path | None,
        kinds.path(
            "File of bearer tokens, one a line; every post over TCP must carry one of them. Without it, the systemd "
            "credential ingest_tokens (LoadCredential=ingest_tokens:FILE), if there is one that is not the word none."
        ),
    ] = None
    allow_unauthenticated: Annotated[
        bool, kinds.flag("Listen where other machines can reach it also without tokens: anybody there can send events.")
    ] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        kinds.names(
            "Names beside localhost by which programs reach the collector. Where no token is asked for, a request to "
            "any other name is refused: it may come from a web page (DNS rebinding). Addresses are always allowed."
        ),
    ] = ()


class Apps(msgspec.Struct, frozen=True, kw_only=True):
    """Which Productiv app an event belongs to."""

    default: Annotated[
        str | None,
        kinds.app_id("App of events that come without an appId. Without a default such events are rejected."),
    ] = None


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """What of an event is kept beyond timestamp, email and eventName."""

    keep_fields: Annotated[
        tuple[str, ...],
        kinds.names("Additional fields to keep and forward as they came. All others are dropped and counted."),
    ] = ()
    max_per_request: Annotated[
        int,
        kinds.integer(
            "Most events in one JSON body or datagram; NDJSON may have any number.",
            1,
            10_000_000,
        ),
    ] = 100_000
    max_email_chars: Annotated[
        int,
        kinds.integer("Longest email. The default is what an address can be (RFC 5321 section 4.5.3.1).", 3, 65_536),
    ] = EMAIL_MAX_CHARS
    max_event_name_chars: Annotated[
        int,
        kinds.integer("Longest eventName. The contract has no limit; the default is far above any name.", 1, 65_536),
    ] = EVENT_NAME_MAX_CHARS
    max_kept_bytes: Annotated[Bytes, kinds.size("JSON of all kept fields of one event, together.", "1KiB", "1MiB")] = (
        Bytes(KEPT_MAX_BYTES)
    )
    max_recorded: Annotated[
        int,
        kinds.integer(
            "Most events in memory that the program around an embedded collector has recorded without waiting for "
            "their commit, beside a thousand that are being stored. 150 to 300 bytes an event with ordinary texts, 1.9 "
            "KB with the longest of ASCII.",
            1,
            10_000_000,
        ),
    ] = 10_000
    max_event_bytes: Annotated[
        Bytes,
        kinds.size("Longest line of an NDJSON stream. No datagram can be longer than the default.", "1KiB", "16MiB"),
    ] = Bytes(64 * 1024)


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The durable queue between the sources and upstream."""

    backend: Annotated[
        str,
        kinds.choice(
            "sqlite: a file on this machine's disk. jetstream: a replicated stream that several collectors share; see "
            "[jetstream], and install usage-collector[nats].",
            "sqlite",
            "jetstream",
        ),
        NEEDS_RESTART,
    ] = "sqlite"
    path: Annotated[
        Path, kinds.path("Directory of the queue. Made if it is missing; on a local file system."), NEEDS_RESTART
    ] = Path("collector-queue")
    dedup_retention: Annotated[
        Seconds,
        kinds.duration(
            "How long a key is remembered, counted from receipt; at least as long as any sender may retry.",
            "1s",
            "3650d",
        ),
        NEEDS_RESTART,
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
    max_dead_bytes: Annotated[
        Bytes,
        kinds.size(
            "Bytes of dead letters, with their reasons. Above it nothing more is buried: an app with refused events is "
            "held, and its events wait, until a person makes room (collector queue dead).",
            "0B",
            "16TiB",
        ),
    ] = Bytes(1024 * MiB)
    keep_delivered: Annotated[
        Seconds,
        kinds.duration(
            "How long delivered events are kept for `collector replay`; about 90 bytes an event, beside max_bytes.",
            "0s",
            "3650d",
        ),
    ] = Seconds(0.0)


JETSTREAM_MESSAGE_BYTES = MiB - 16 * 1024
"""Lines in one message, with their ends: what nats-server takes unless it is told otherwise, with headers, or with an
app's name and the reason in a dead letter."""


class JetStream(msgspec.Struct, frozen=True, kw_only=True):
    """Where the queue is with queue.backend = "jetstream": nats-server 2.12 or newer, with JetStream."""

    servers: Annotated[
        tuple[str, ...], kinds.servers("The servers of one cluster, or some of them."), NEEDS_RESTART
    ] = ("nats://127.0.0.1:4222",)
    stream: Annotated[
        str,
        kinds.token(
            "Name of the stream, which is made if it is missing, and first part of its subjects. Collectors with the "
            "same one are a fleet; dead letters are in a second one with -dead behind its name."
        ),
        NEEDS_RESTART,
    ] = "usage"
    replicas: Annotated[
        int,
        kinds.integer(
            "On how many servers each event is; a put is acknowledged when a majority has it. 3 outlives any one.", 1, 5
        ),
        NEEDS_RESTART,
    ] = 3
    lease_timeout: Annotated[
        Seconds,
        kinds.duration("When others may deliver what a collector that died was delivering.", "1s", "1h"),
        NEEDS_RESTART,
    ] = Seconds(30.0)
    user: Annotated[str | None, kinds.text("User name, where the servers want user and password."), NEEDS_RESTART] = (
        None
    )
    password: Annotated[
        Secret | None, kinds.secret("The password. Rather than in a file, give it in the environment."), NEEDS_RESTART
    ] = None
    credentials_file: Annotated[
        Path | None, kinds.path("File with a user's JWT and key, as `nsc generate creds` writes it."), NEEDS_RESTART
    ] = None
    nkey_file: Annotated[Path | None, kinds.path("File with the seed of a user's nkey."), NEEDS_RESTART] = None
    ca_file: Annotated[
        Path | None,
        kinds.path("Certificates, in PEM, of who may sign the servers'; else the system's. Turns TLS on."),
        NEEDS_RESTART,
    ] = None
    certificate_file: Annotated[
        Path | None, kinds.path("This collector's certificate in PEM, where the servers want one."), NEEDS_RESTART
    ] = None
    key_file: Annotated[
        Path | None, kinds.path("The certificate's key in PEM, where it is not in the same file."), NEEDS_RESTART
    ] = None


class Flush(msgspec.Struct, frozen=True, kw_only=True):
    """How events leave for upstream."""

    batch_events: Annotated[
        int, kinds.integer("Most events in one request; 1000 is the contract's limit.", 1, 1000), NEEDS_RESTART
    ] = 1000
    linger: Annotated[
        Seconds, kinds.duration("How long the oldest event may wait for its batch to fill up.", "0s", "1h")
    ] = Seconds(1.0)
    max_in_flight: Annotated[
        int,
        kinds.integer(
            "Most requests to upstream at one time, over all apps. Below this the collector finds by itself how many "
            "upstream bears: more while answers stay quick, fewer when they become slow or fail. Two at least: one of "
            "them is for apps in trouble, whose requests may hang.",
            2,
            256,
        ),
    ] = 16
    max_requests_per_second: Annotated[
        int,
        kinds.integer(
            "Most requests to upstream in a second; 0 is no limit. With the jetstream backend the collectors that have "
            "something to deliver share it evenly.",
            0,
            100_000,
        ),
    ] = 0
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
    scope: Annotated[str, kinds.text("Scopes asked for where something is pushed, separated by spaces.")] = (
        "https://api.productiv.com/connector.write"
    )
    export_scope: Annotated[
        str, kinds.text("Scopes asked for by `collector api` where it reads: app details, workflows, audit events.")
    ] = "https://api.productiv.com/report.read"
    usage_events_path: Annotated[
        str, kinds.url_path("Path of the usage-events operation under base_url.", "{appId}")
    ] = "/services/push/v1/customer/apps/{appId}/usage-events"
    timeout: Annotated[
        Seconds, kinds.duration("How long one request may take before it counts as failed.", "10ms", "10m")
    ] = Seconds(30.0)


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """Another collector to deliver to in Productiv's place: this one is at the edge, that one is central."""

    url: Annotated[
        str | UnixUrl | None,
        kinds.url_or_unix(
            "Where the central collector takes events. With it [upstream] is not used and needs no credentials. The "
            "central must keep the same events.keep_fields: it drops and counts others."
        ),
        NEEDS_RESTART,
    ] = None
    token: Annotated[
        Secret | None,
        kinds.secret(
            "One of the tokens in the central's access.tokens_file, if it has one. Here, or better: in the "
            "environment, in token_file, or as the systemd credential forward_token."
        ),
    ] = None
    token_file: Annotated[Path | None, kinds.path("File whose content, without the line end, is the token.")] = None
    timeout: Annotated[
        Seconds, kinds.duration("How long one request may take before it counts as failed.", "10ms", "10m")
    ] = Seconds(30.0)


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """Operations of the API that local apps may call through the collector, which adds its credentials."""

    operations: Annotated[
        tuple[str, ...],
        kinds.choices(
            "Operations to pass on, by their names in the contract, on the paths of the contract. Whoever may send "
            "events may call them. Usage events are always taken, and go through the queue.",
            *(operation.id for operation in OPERATIONS if operation.scope is not None),
        ),
    ] = ()


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
    udp: Udp = Udp()
    unix: Unix = Unix()
    access: Access = Access()
    apps: Apps = Apps()
    events: Events = Events()
    queue: Queue = Queue()
    jetstream: JetStream = JetStream()
    flush: Flush = Flush()
    upstream: Upstream = Upstream()
    forward: Forward = Forward()
    gateway: Gateway = Gateway()
    stop: Stop = Stop()
    log: Log = Log()

    @property
    def delivers_to(self) -> str:
        """Whom events are delivered to: the API's URL, or the central collector's."""
        return self.upstream.base_url if self.forward.url is None else str(self.forward.url)

    @property
    def delivery_timeout(self) -> Seconds:
        """How long one of their answers may take."""
        return self.upstream.timeout if self.forward.url is None else self.forward.timeout
