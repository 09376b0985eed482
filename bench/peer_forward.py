"""rsyslog's way to the sink: posts what it is given in batches of a thousand, and says so. Started by rsyslog itself.

Speaks the protocol of omprog with `confirmMessages` and `useTransactions`: a line in, a line out. Debian has no omhttp.
"""

import argparse
import sys
from http.client import HTTPConnection

BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    connection = HTTPConnection("127.0.0.1", parser.parse_args().port)
    batch: list[bytes] = []

    def post() -> None:
        if batch:
            connection.request("POST", "/", b"".join(batch))
            connection.getresponse().read()
            batch.clear()

    print("OK", flush=True)
    for line in sys.stdin.buffer:
        said = "OK"
        if line == b"COMMIT TRANSACTION\n":
            post()
        elif line != b"BEGIN TRANSACTION\n":
            batch.append(line)
            said = "DEFER_COMMIT"
        if len(batch) >= BATCH:
            post()
        print(said, flush=True)


if __name__ == "__main__":
    main()
