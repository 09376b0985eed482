"""The load in datagrams: one event each, at a given rate or as fast as it goes. Runs as a process.

Everything is built before the clock starts. Prints one JSON object: seconds, datagrams sent.
"""

import argparse
import json
import socket
import time

from bench.load import events

BURST_SECONDS = 0.001


def send(target: socket.socket, datagrams: list[bytes], rate: float) -> float:
    """Sends all, a millisecond's share at a time; the seconds that it took."""
    send_one = target.send
    started = time.perf_counter()
    if not rate:
        for datagram in datagrams:
            send_one(datagram)
        return time.perf_counter() - started
    sent = 0
    while sent < len(datagrams):
        due = int((time.perf_counter() - started) * rate) - sent
        if due < rate * BURST_SECONDS:
            time.sleep(BURST_SECONDS / 4)
            continue
        for datagram in datagrams[sent : sent + due]:
            send_one(datagram)
        sent += due
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--udp-port", type=int)
    parser.add_argument("--unix-path")
    parser.add_argument("--rate", type=float, default=0.0, help="datagrams a second; 0 is as fast as it goes")
    parser.add_argument("--datagrams", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    to_send = [event.encode() for event in events(options.datagrams, options.seed)]
    if options.unix_path:
        target = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        target.connect(options.unix_path)
    else:
        target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        target.connect(("127.0.0.1", options.udp_port))
    seconds = send(target, to_send, options.rate)
    print(json.dumps({"seconds": seconds, "events": len(to_send)}))


if __name__ == "__main__":
    main()
