"""The queue in a replicated engine: one NATS JetStream stream that any number of collectors share.

Events go in with one *atomic batch* of messages, which is a transaction (nats-server 2.12 or newer, `allow_atomic`):

- for each event a message without content on `STREAM.k.KEY`, KEY being the 24 bytes of its key in base64, with
  `Nats-Expected-Last-Subject-Sequence: 0`, that is: only if there is none yet. These messages are the memory of keys.
- for each app a message on `STREAM.d.APP.EVENTS.KIB` with the lines of all of its events.

The server stores all of it or nothing, and acknowledges once a majority of the replicas has it. A batch that brings one
known key is refused as a whole; then the keys are looked up, and what is new goes in with a second one. Only a key that
was *found* makes a duplicate: a refusal alone might be due to another batch that is on its way and never arrives. What
is found names the batch it came with, so that whoever asks again after an answer was lost knows its own.

Delivery: one durable pull consumer an app, explicit acks. A collector that holds messages says so in time; where it
dies, the server hands them to another after `jetstream.lease_timeout`. What was delivered is deleted, which settles it
with its consumer too: by its number, and only where the server's stamp is that of the message which was delivered, for
a stream that was made anew, or whose end all servers have lost, gives its numbers again.
Keys are purged once `queue.dedup_retention` has passed since their receipt, by the servers' clock; a message that still
waits is never purged, however old it is: the stream has no max_age. Dead letters are in a stream of their own.

Why so (Python 3.11, two cores, 85-byte events, three servers on them too; `python -m bench.jetstream` measures again):

                                            collector's CPU    one server     three servers, R3
    atomic batch, a key a message (this)          1 us/event    26k events/s    37k events/s
    one message a key, discard-new-per-subject   11 us/event    40k events/s    27k events/s
    Nats-Msg-Id with a window                    10 us/event    46k events/s    not exact

- `Nats-Msg-Id` is remembered in memory and rebuilt from the messages that the stream still has. For a retention of days
  it is exact only with every message kept for as long; and then one subject a key is exact without a window to size.
- One message an event that is both memory and queue needs an answer, a delivery and an acknowledgement for each: ten
  times the collector's CPU. It also cannot store a request wholly or not at all.

A key takes about 170 bytes of each replica's disk and 0.5 KB of each server's memory, its caches included, for as long
as it is remembered; the event's own bytes are there only until it is delivered.
"""
