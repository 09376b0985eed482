"""The file of bearer tokens that `access.tokens_file` names."""

import re
from pathlib import Path

from collector.config.kinds import Secret
from collector.errors import ConfigInvalid

MIN_TOKEN_CHARS = 16
"""Below this a token can be guessed by trying. 22 characters of `openssl rand -base64 16` are 128 bits."""

_TOKEN = re.compile(rb"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750 section 2.1


def read_tokens(file: Path) -> tuple[Secret, ...]:
    """The tokens of a file, one a line; blank lines and lines that begin with `#` are none.

    It is read as bytes: a comment may be in any encoding, and nothing in it that Unicode calls a line end is one.
    Raises ConfigInvalid, which names the file and the line and never shows what stands there.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "NUL in its name"
        raise ConfigInvalid(f"access.tokens_file: {str(file)!r} cannot be read ({reason})") from error
    tokens = []
    for number, line in enumerate(lines, 1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if len(token) < MIN_TOKEN_CHARS or not _TOKEN.fullmatch(token):
            raise ConfigInvalid(
                f"access.tokens_file: {str(file)!r}, line {number}: not a token; allowed: at least {MIN_TOKEN_CHARS} "
                "letters, digits and -._~+/ with = at the end"
            )
        tokens.append(Secret(token.decode("ascii")))
    if not tokens:
        raise ConfigInvalid(f"access.tokens_file: {str(file)!r} holds no token; every post would be refused")
    return tuple(tokens)
