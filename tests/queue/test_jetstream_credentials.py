"""How a collector shows a NATS server who it is: nkeys, credentials files, certificates; and what is said otherwise."""

import asyncio
import base64
import gc
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import nkeys
import pytest

from collector.clock import Clock
from collector.config.model import JetStream
from collector.errors import CollectorError, CredentialsRefused, Unusable
from collector.observe.metrics import Metrics
from collector.queue.base import Verdict
from collector.queue.jetstream import connection
from collector.queue.jetstream.queue import JetStreamQueue
from tests import nats
from tests.patience import until
from tests.queue.samples import batch, roomy

# nats-py leaves the sockets of attempts to connect that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")
UNLIMITED = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
NO_LIMITS = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1}

Opener = Callable[[JetStream], Awaitable[JetStreamQueue]]


@pytest.fixture
async def open_queue(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opener]:
    """Opens queues, each seen to store an event, and closes them."""
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 2.0)
    opened: list[JetStreamQueue] = []

    async def open_one(settings: JetStream) -> JetStreamQueue:
        queue = JetStreamQueue(
            msgspec.structs.replace(settings, replicas=1),
            batch_events=10,
            limits=roomy(),
            dedup_retention_seconds=60,
            clock=Clock(),
            metrics=Metrics(),
        )
        await queue.open()
        opened.append(queue)
        assert await queue.put([batch("wiki", [1])]) == [Verdict(1)]
        return queue

    yield open_one
    for queue in opened:
        await queue.close()
    gc.collect()  # what nats-py has left open shall be noticed here, where it is not minded


class Key:
    """A key pair of NATS: `public` is a name, `seed` a secret."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), kind)
        self.pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self.pair.public_key.decode()

    def token(self, subject: "Key", claims: dict[str, Any]) -> str:
        """What this key says of another one: a JWT as NATS wants it."""
        body = {"iat": int(time.time()), "iss": self.public, "name": "test", "sub": subject.public, "nats": claims}
        body["jti"] = hashlib.sha256(msgspec.json.encode(body)).hexdigest()
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, body]
        text = b".".join(base64.urlsafe_b64encode(msgspec.json.encode(part)).rstrip(b"=") for part in parts)
        signature = self.pair.sign(text)
        return f"{text.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def secret_file(folder: Path, name: str, content: bytes | str) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


async def test_an_nkey_opens_the_queue_and_another_one_does_not(open_queue: Opener, tmp_path: Path) -> None:
    right, wrong = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    with nats.server(tmp_path, f"authorization {{ users: [ {{ nkey: {right.public} }} ] }}\n") as one:
        await open_queue(JetStream(servers=(one.url,), nkey_file=secret_file(tmp_path, "right", right.seed)))
        with pytest.raises(CredentialsRefused, match="nkey_file") as refused:
            await open_queue(JetStream(servers=(one.url,), nkey_file=secret_file(tmp_path, "wrong", wrong.seed)))
        assert wrong.seed.decode() not in str(refused.value)


async def test_a_file_that_holds_no_key_at_the_moment_of_a_reconnect_is_read_again(
    open_queue: Opener, tmp_path: Path
) -> None:
    right = Key(nkeys.PREFIX_BYTE_USER)
    file = secret_file(tmp_path, "right", right.seed)
    with nats.server(tmp_path, f"authorization {{ users: [ {{ nkey: {right.public} }} ] }}\n") as one:
        queue = await open_queue(JetStream(servers=(one.url,), nkey_file=file))
        tending = asyncio.create_task(queue.maintain())
        try:
            one.kill()
            file.write_bytes(b"SUA")
            one.start()
            await until(lambda: "nkey_file" in str(queue.trouble))
            file.write_bytes(right.seed)
            await until(lambda: queue.trouble is None)
            assert await queue.put([batch("wiki", [1, 2])]) == [Verdict(1, (0,))]
        finally:
            tending.cancel()
            await asyncio.wait([tending])


async def test_a_credentials_file_opens_the_queue_and_one_of_a_stranger_does_not(
    open_queue: Opener, tmp_path: Path
) -> None:
    operator, system, account = (
        Key(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT)
    )
    of_account = {"type": "account", "version": 2, "limits": NO_LIMITS | UNLIMITED | {"wildcards": True}}
    of_system = {"type": "account", "version": 2, "limits": NO_LIMITS | {"wildcards": True}}
    more = (
        f"operator: {operator.token(operator, {'type': 'operator', 'version': 2})}\n"
        f"system_account: {system.public}\nresolver: MEMORY\nresolver_preload: {{\n"
        f"  {account.public}: {operator.token(account, of_account)}\n"
        f"  {system.public}: {operator.token(system, of_system)}\n}}\n"
    )

    def credentials(name: str, issuer: Key) -> Path:
        user = Key(nkeys.PREFIX_BYTE_USER)
        token = issuer.token(user, {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1})
        rule = "------"
        text = (
            f"-----BEGIN NATS USER JWT-----\n{token}\n{rule}END NATS USER JWT{rule}\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n{rule}END USER NKEY SEED{rule}\n"
        )
        return secret_file(tmp_path, name, text)

    with nats.server(tmp_path, more) as one:
        await open_queue(JetStream(servers=(one.url,), credentials_file=credentials("right", account)))
        stranger = credentials("stranger", Key(nkeys.PREFIX_BYTE_ACCOUNT))
        with pytest.raises(CredentialsRefused, match="credentials_file"):
            await open_queue(JetStream(servers=(one.url,), credentials_file=stranger))


@pytest.mark.parametrize("key", ["nkey_file", "credentials_file", "ca_file"])
async def test_a_file_that_is_no_such_thing_is_named(open_queue: Opener, tmp_path: Path, key: str) -> None:
    rubbish = secret_file(tmp_path, "rubbish", "hunter2")
    with nats.server(tmp_path, "authorization { user: app, password: right }\n") as one:
        for file, reason in ((rubbish, key), (tmp_path / "none", f"{key}.*cannot be read")):
            with pytest.raises((Unusable, CredentialsRefused), match=reason) as refused:
                await open_queue(msgspec.structs.replace(JetStream(servers=(one.url,)), **{key: file}))
            assert "hunter2" not in str(refused.value)


class Certificate:
    """A certificate that signs itself, for 127.0.0.1, and its key."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        words = (
            f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={name} -keyout {self.key}"
        )
        extension = "subjectAltName=IP:127.0.0.1"
        subprocess.run(
            ["openssl", *words.split(), "-keyout", str(self.key), "-out", str(self.file), "-addext", extension],  # noqa: S607 - where it is, differs
            check=True,
            capture_output=True,
        )


@needs_openssl
async def test_over_tls_only_a_server_that_is_trusted_is_talked_to(open_queue: Opener, tmp_path: Path) -> None:
    own, other = Certificate(tmp_path, "own"), Certificate(tmp_path, "other")
    with nats.server(tmp_path, f'tls {{ cert_file: "{own.file}", key_file: "{own.key}" }}\n') as one:
        await open_queue(JetStream(servers=(one.url,), ca_file=own.file))
        for untrusted in (JetStream(servers=(one.url,), ca_file=other.file), JetStream(servers=(one.url,))):
            with pytest.raises(CollectorError, match="certificate"):
                await open_queue(untrusted)


@needs_openssl
async def test_a_server_that_wants_a_certificate_gets_one(open_queue: Opener, tmp_path: Path) -> None:
    own, client, other = (Certificate(tmp_path, name) for name in ("own", "client", "other"))
    more = f'tls {{ cert_file: "{own.file}", key_file: "{own.key}", ca_file: "{client.file}", verify: true }}\n'
    with nats.server(tmp_path, more) as one:
        trusting = JetStream(servers=(one.url,), ca_file=own.file)
        right = msgspec.structs.replace(trusting, certificate_file=client.file, key_file=client.key)
        await open_queue(right)
        wrong = msgspec.structs.replace(trusting, certificate_file=other.file, key_file=other.key)
        for refused in (trusting, wrong):
            with pytest.raises(CollectorError, match=r"jetstream\.servers|certificate"):
                await open_queue(refused)
