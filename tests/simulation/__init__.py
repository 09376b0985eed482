"""The whole agent on virtual time, from a seed: `make simulate`.

`world.py` says what happens in a world and what must be true of it. The agent is the one of `collector/agent.py`, with
its HTTP server; replaced are the event loop, the clocks, the loopback network, the way to upstream, the queue's
threads, and how SQLite's files answer. Datagrams, Unix sockets, several processes on one queue and torn databases are
not in it.

A simulation that finds nothing proves nothing. So the agent was broken on purpose, and these are the seeds, from 0 on,
that it took to notice:

| broken | noticed after |
|---|---|
| acknowledged before the commit, whatever becomes of it | 1 |
| acknowledged though the commit failed | 3 |
| keys forgotten with the delivery of their events | 1 |
| keys forgotten after nine tenths of the retention | 822 |
| keys that were forgotten are not counted | 1 |
| a batch dropped on 413 | 17 |
| a 200 whose `success` is false taken for a success | 2 |
| a leased segment leased again | 2 |
| a settlement that failed is not tried again | 50 |
| returned events no longer counted as waiting | 2 |
| one byte a shortened segment too few given back | 2 |
| a caller cancelled while it waits takes its put with it | 361 |
| numbers of apps kept over a rollback | 89 |
| one request more in flight than allowed | 4 |
| a Retry-After not heard by a batch beside (found so) | 4 |
| a Retry-After not heard while the disk refuses to settle (found so) | 1096 |
| a Retry-After of the token not heard by other apps (found so) | 67 |
"""
