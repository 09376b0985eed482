"""What a collector shows the servers: read and looked at before anybody is asked, and never said."""

import re
import ssl
from pathlib import Path
from typing import Any

from collector.config.model import JetStream
from collector.errors import Unusable

_JWT_AND_SEED = re.compile(
    rb"-{3,}BEGIN NATS USER JWT-{3,}\s+\S+\s+-{3,}END .*-{3,}BEGIN USER NKEY SEED-{3,}\s+(\S+)\s+-{3,}END", re.DOTALL
)


def credentials(settings: JetStream) -> dict[str, Any]:
    """The options for nats-py. Raises Unusable where a file cannot be read, or holds something else."""
    options: dict[str, Any] = {}
    if settings.user is not None:
        options |= {"user": settings.user, "password": settings.password.reveal() if settings.password else ""}
    if (file := settings.credentials_file) is not None:
        found = _JWT_AND_SEED.search(_content("credentials_file", file))
        if found is None or not _is_seed(found[1]):
            raise Unusable(
                f"jetstream.credentials_file: {str(file)!r} holds no JWT with its seed, as `nsc` writes them"
            )
        options["user_credentials"] = str(file)
    if (file := settings.nkey_file) is not None:
        if not _is_seed(_content("nkey_file", file).strip()):
            raise Unusable(f"jetstream.nkey_file: {str(file)!r} holds no seed of an nkey")
        options["nkeys_seed"] = str(file)
    if settings.ca_file is not None or settings.certificate_file is not None:
        options["tls"] = _tls(settings)
    return options


def _tls(settings: JetStream) -> ssl.SSLContext:
    for key in ("ca_file", "certificate_file", "key_file"):
        if (file := getattr(settings, key)) is not None:
            _content(key, file)
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.certificate_file is not None:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except (ssl.SSLError, OSError) as error:
        raise Unusable(f"jetstream.ca_file, certificate_file or key_file cannot be used: {error}") from error
    return context


def _content(key: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unusable(f"jetstream.{key}: {str(file)!r} cannot be read ({error.strerror})") from error


def _is_seed(text: bytes) -> bool:
    """Whether it is the seed of an nkey; nats-py looks at it only when a server asks."""
    import nkeys  # noqa: PLC0415 - of the extra, as nats-py

    try:
        nkeys.from_seed(bytearray(text))
    except Exception:  # noqa: BLE001 - whatever its decoders raise
        return False
    return True
