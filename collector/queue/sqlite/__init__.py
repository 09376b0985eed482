"""The queue on one machine's disk: a SQLite file in WAL mode, one writer a process, group commit.

How an event goes through:

1. `put` hands its batches to the group commit. One transaction enters their keys, keeps the lines of those
   that were new as segments of their apps, and is fsynced; then every caller of the group learns its verdicts.
2. `lease` reads an app's next segments beside the writer, or has them still in memory (`AtHand`). What is leased is
   known in memory alone (`Lanes`): after a crash all that was not settled is simply still there. What is sent twice
   that way, upstream's own key absorbs.
3. `settle` takes the segments away in the same transactions that bring new events in.
   With `queue.keep_delivered` it moves what was delivered to a table of its own, for `collector replay`.
4. The key stays until `dedup_retention` has passed since its receipt; `maintain` forgets it in small steps.

Who writes is the `Store` behind a `Writer`; who reads is the `View` in a thread of its own. Several processes may put
into one file; only the holder of the flushing role may lease. Before a file is opened `rescue` has made it ready; what
commands do is in `by_hand` and `backup`.
"""
