"""The collector inside programs without an event loop: threads, forks, ends of the program."""

import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from collector import Collector, QueueFull, Recorded, Rejected, SyncCollector, Unusable, UsageEvent
from collector.sources.recording_thread import RecordingThread
from tests.embedded import config, metric
from tests.patience import PATIENCE_SECONDS
from tests.programs import NOWHERE, ended, program, waiting


def collector_of(folder: Path, **settings: str) -> SyncCollector:
    return SyncCollector(config(folder, NOWHERE, **{"stop__deadline": "100ms"} | settings))


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[SyncCollector]:
    with collector_of(tmp_path) as collector:
        yield collector


def test_an_event_is_on_disk_when_record_returns(tmp_path: Path, collector: SyncCollector) -> None:
    same = {"email": "user@example.com", "event_name": "saved"}
    assert collector.record(timestamp_ms=1, **same) is Recorded.ACCEPTED
    assert waiting(tmp_path) == 1
    assert collector.record(timestamp_ms=1, **same) is Recorded.DUPLICATE
    with pytest.raises(Rejected, match="email"):
        collector.record(email="nobody", event_name="saved")


def test_it_starts_with_its_first_event_and_starts_again_after_a_stop(tmp_path: Path) -> None:
    collector = collector_of(tmp_path)
    for number in range(3):
        assert collector.record(email="user@example.com", event_name="saved", timestamp_ms=number) is Recorded.ACCEPTED
        assert collector.stop().waiting_events == number + 1
    assert collector.stop().waiting_events == 0  # nothing runs: nothing to say


def test_nothing_starts_before_it_is_needed(tmp_path: Path) -> None:
    before = threading.active_count()
    collector = collector_of(tmp_path)
    assert collector.flush(0)
    assert collector.stop().waiting_events == 0
    assert threading.active_count() == before
    assert not (tmp_path / "queue").exists()


def test_texts_and_numbers_of_types_of_their_own_are_what_they_say(tmp_path: Path, collector: SyncCollector) -> None:
    class Safe(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    class Number(int):
        pass

    name, number = Safe("saved"), Number(7)
    assert collector.record(email=Safe("user@example.com"), event_name=name, timestamp_ms=number) is Recorded.ACCEPTED
    assert collector.record(email="user@example.com", event_name="saved", timestamp_ms=7) is Recorded.DUPLICATE
    for event in (name, "other"):
        assert collector.record_nowait(email="user@example.com", event_name=event, timestamp_ms=8, app_id=Safe("crm"))
    assert collector.flush(PATIENCE_SECONDS)
    assert waiting(tmp_path) == 3


def test_many_threads_record_at_once(tmp_path: Path, collector: SyncCollector) -> None:
    verdicts: list[Recorded] = []

    def work() -> None:
        verdicts.extend(
            collector.record(email="user@example.com", event_name="saved", timestamp_ms=number) for number in range(50)
        )

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (verdicts.count(Recorded.ACCEPTED), verdicts.count(Recorded.DUPLICATE)) == (50, 350)
    assert waiting(tmp_path) == 50


def test_what_was_recorded_without_waiting_is_on_disk_after_a_flush(tmp_path: Path, collector: SyncCollector) -> None:
    for number in range(2500):
        assert collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=number)
    assert collector.flush(PATIENCE_SECONDS)
    assert waiting(tmp_path) == 2500


def test_the_stop_waits_for_what_was_recorded_without_waiting(tmp_path: Path) -> None:
    with collector_of(tmp_path) as collector:
        for number in range(100):
            collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=number)
    assert waiting(tmp_path) == 100


def test_an_event_is_stamped_at_the_call_and_not_when_it_is_stored(tmp_path: Path, collector: SyncCollector) -> None:
    before = time.time_ns() // 10**6
    collector.record_nowait(email="user@example.com", event_name="saved")
    after = time.time_ns() // 10**6
    assert collector.flush(PATIENCE_SECONDS)
    connection = sqlite3.connect(tmp_path / "queue" / "queue.sqlite3")
    [(line,)] = connection.execute("SELECT lines FROM segment")
    connection.close()
    assert before <= json.loads(line)["timestamp"] <= after


def test_a_flush_returns_in_time_also_where_the_queue_takes_nothing(tmp_path: Path) -> None:
    collector = collector_of(tmp_path, queue__max_bytes="64KiB", events__max_recorded="100")
    with pytest.raises(QueueFull):
        collector.record_many([UsageEvent(n, "user@example.com", "saved") for n in range(2000)])
    collector.record_many([UsageEvent(n, "user@example.com", "saved") for n in range(890)])
    taken = [
        collector.record_nowait(email="user@example.com", event_name="s" * 1000, timestamp_ms=n) for n in range(2000)
    ]
    assert 100 <= taken.count(True) <= 100 + 1000  # one chunk is on its way
    assert not any(collector.flush(0.001) for _ in range(50))
    assert len(storing_of(collector).waiting) <= 100  # a flush that was in vain takes no room
    assert collector.stop().lost_events == taken.count(True)
    assert collector.flush(0)  # nothing waits any more


def test_a_flush_may_wait_for_ever(tmp_path: Path, collector: SyncCollector) -> None:
    assert collector.record_nowait(email="user@example.com", event_name="saved")
    assert collector.flush(float("inf"))
    assert waiting(tmp_path) == 1


def test_recording_without_waiting_does_not_wait_for_another_threads_start(tmp_path: Path) -> None:
    collector = collector_of(tmp_path)
    with ThreadPoolExecutor(1) as other, collector._lock:  # as while it starts
        call = other.submit(collector.record_nowait, email="user@example.com", event_name="saved")
        assert call.result(timeout=PATIENCE_SECONDS)
    assert collector.flush(PATIENCE_SECONDS)
    collector.stop()
    assert waiting(tmp_path) == 1


def test_an_event_that_comes_while_no_thread_can_begin_is_refused_and_the_next_one_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = collector_of(tmp_path)
    with monkeypatch.context() as exhausted:

        def no_more_threads(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        exhausted.setattr(threading.Thread, "start", no_more_threads)
        for number in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=number)
        assert collector.stop().waiting_events == 0
    assert collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=7)
    assert collector.flush(PATIENCE_SECONDS)
    collector.stop()
    assert waiting(tmp_path) == 1


def test_what_finds_no_room_is_counted_and_said_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collector = collector_of(tmp_path, events__max_recorded="10")
    refused = 0
    with collector._lock:  # as while another thread starts it: nothing is stored
        while refused < 5:
            refused += not collector.record_nowait(email="user@example.com", event_name="saved")
    assert collector.flush(PATIENCE_SECONDS)
    life = collector._life
    assert life is not None
    assert metric(life.collector, "refusals_total", source="program", reason="overload") == 5
    [said] = [record for record in caplog.records if record.getMessage() == "recorder.refused"]
    assert (said.levelname, said.__dict__["events"]) == ("ERROR", 5)
    collector.stop()


def test_what_is_recorded_amid_a_stop_is_not_forgotten(tmp_path: Path) -> None:
    collector = collector_of(tmp_path)
    collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=1)
    ended = storing_of(collector)
    collector.stop()
    ended.waiting.append(UsageEvent(2, "user@example.com", "saved"))  # by a thread that had looked before the stop
    assert ended.needs_word
    collector._tell(ended)
    assert collector.flush(PATIENCE_SECONDS)
    collector.stop()
    assert waiting(tmp_path) == 2


def storing_of(collector: SyncCollector) -> RecordingThread:
    assert collector._storing is not None
    return collector._storing


def test_an_event_that_is_none_costs_its_neighbours_nothing(tmp_path: Path, collector: SyncCollector) -> None:
    for stamp in (1, 10**5000, 2):
        assert collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=stamp)
    assert collector.flush(PATIENCE_SECONDS)
    assert waiting(tmp_path) == 2


def test_a_start_that_fails_says_why_and_the_next_one_may_succeed(tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("no directory")
    collector = collector_of(tmp_path)
    with pytest.raises(Exception, match=str(tmp_path)):
        collector.record(email="user@example.com", event_name="saved")
    (tmp_path / "queue").unlink()
    assert collector.record(email="user@example.com", event_name="saved") is Recorded.ACCEPTED
    collector.stop()


def die(collector: SyncCollector, folder: Path) -> None:
    collector.record(email="user@example.com", event_name="saved", timestamp_ms=1)
    life = collector._life
    assert life is not None
    for name in os.listdir(folder / "queue"):  # noqa: PTH208 - names are wanted
        if name.startswith("queue.sqlite3"):
            (folder / "queue" / name).unlink()
    with pytest.raises(Unusable):
        life._ended.result(timeout=PATIENCE_SECONDS)


def test_the_stop_of_a_collector_that_has_died_says_of_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collector = collector_of(tmp_path)
    die(collector, tmp_path)
    with pytest.raises(Unusable, match="was removed or replaced"):
        collector.stop()
    assert collector.stop().waiting_events == 0
    assert not [record for record in caplog.records if record.name == "concurrent.futures"]


def test_a_collector_that_has_died_is_followed_by_another(tmp_path: Path, collector: SyncCollector) -> None:
    die(collector, tmp_path)
    assert collector.record(email="user@example.com", event_name="saved", timestamp_ms=1) is Recorded.ACCEPTED


def test_a_stop_by_another_thread_amid_the_start_stops_what_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    come, word = threading.Event(), threading.Event()
    start = Collector.start

    async def start_late(self: Collector) -> None:
        come.set()
        word.wait()
        await start(self)

    monkeypatch.setattr(Collector, "start", start_late)
    collector = collector_of(tmp_path)
    before = threading.active_count()
    with ThreadPoolExecutor(2) as others:
        starting = others.submit(collector.start)
        come.wait()
        stopping = others.submit(collector.stop)
        word.set()
        starting.result(timeout=PATIENCE_SECONDS)
        stopping.result(timeout=PATIENCE_SECONDS)
    assert threading.active_count() == before


# -- whole programs ----------------------------------------------------------------------------------------------------


def test_the_end_of_the_program_stores_what_it_recorded(tmp_path: Path) -> None:
    # Python 3.12 lets no thread begin once the main program has ended; before and after it, that starts by itself.
    start = "collector.start()\n" if sys.version_info[:2] == (3, 12) else ""
    ended(program(tmp_path, f"{start}for number in range(500): record_nowait(number)\n"))
    assert waiting(tmp_path) == 500


def test_the_end_of_a_child_of_multiprocessing_stores_what_it_recorded(tmp_path: Path) -> None:
    source = """
import multiprocessing

def work():
    for number in range(500):
        record_nowait(number)

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
assert child.exitcode == 0
"""
    ended(program(tmp_path, source))
    assert waiting(tmp_path) == 500


def test_a_handler_of_signals_may_record_and_flush_whatever_it_interrupts(tmp_path: Path) -> None:
    source = """
import signal
handled = 0

def handle(*_):
    global handled
    handled += 1
    collector.record_nowait(email="user@example.com", event_name="signalled", timestamp_ms=handled)
    assert collector.flush(0) in (True, False)

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
number = 0
while handled < 1000:
    number += 1
    collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=number % 500)
    collector.flush(0)
signal.setitimer(signal.ITIMER_REAL, 0)
assert collector.flush(100)
"""
    ended(program(tmp_path, source))
    assert waiting(tmp_path) >= 1000


def test_where_the_system_has_no_descriptors_left_a_start_is_refused_and_what_was_recorded_is_stored_later(
    tmp_path: Path,
) -> None:
    source = """
import resource
from collector import Retryable
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
first_free = os.open("/dev/null", os.O_RDONLY)
refused = 0
while True:  # each time the start comes one descriptor further
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + refused, hard))
    if not refused:
        record_nowait(1)
    try:
        record(2)
    except Retryable:
        refused += 1
    else:
        break
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
assert collector.flush(100)
print(refused)
"""
    process = program(tmp_path, source)
    said, complained = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, int(said) > 1) == (0, True), complained  # also asyncio complains, of half a loop
    assert waiting(tmp_path) == 2


@pytest.mark.parametrize(
    ("handles", "ends_with"),
    [
        ("collector.stop()", "Unusable('this SyncCollector was stopped amid its start')"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt()"),
    ],
)
def test_a_start_that_a_handler_of_signals_ends_leaves_nothing_behind(
    tmp_path: Path, handles: str, ends_with: str
) -> None:
    source = f"""
import signal, threading
from collector import Collector, Delivery
start, handled = Collector.start, threading.Event()

async def interrupt_and_start(self):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    handled.wait()
    await start(self)

def handle(*_):
    handled.set()
    {handles}

signal.signal(signal.SIGUSR1, handle)
Collector.start = interrupt_and_start
try:
    collector.start()
except BaseException as error:
    print(repr(error))
assert threading.active_count() == 1
Collector.start = start
with SyncCollector(load(environment=dict(os.environ)), delivery=Delivery.EXCLUSIVE):
    record(1)
"""
    assert ended(program(tmp_path, source)) == f"{ends_with}\n"
    assert waiting(tmp_path) == 1


def test_a_signal_that_ends_the_program_leaves_time_for_a_flush(tmp_path: Path) -> None:
    source = """
import atexit, signal
atexit.register(lambda: print("at exit", collector.flush(100)))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    for number in range(1000):
        record_nowait(number)
        if number == 500:
            os.kill(os.getpid(), signal.SIGTERM)
finally:
    record_nowait(5000)
    print("finally", collector.flush(100))
"""
    assert ended(program(tmp_path, source)) == "finally True\nat exit True\n"
    assert waiting(tmp_path) == 502


def test_recording_in_a_finally_at_the_end_works(tmp_path: Path) -> None:
    source = "try:\n    record(1)\n    sys.exit(0)\nfinally:\n    record(2)\n    assert collector.flush(100)\n"
    ended(program(tmp_path, source))
    assert waiting(tmp_path) == 2


@pytest.mark.parametrize("parent", ["record(0)", "record_nowait(0)", "pass"], ids=["running", "buffering", "idle"])
def test_forked_children_record_into_the_same_queue(tmp_path: Path, parent: str) -> None:
    source = f"""
{parent}
children = []
for child in range(1, 5):
    pid = os.fork()
    if not pid:
        for number in range(50):
            record(child * 1000 + number)
            record_nowait(child * 1000 + 500 + number)
        sys.exit(0)
    children.append(pid)
for pid in children:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
record(9999)
"""
    ended(program(tmp_path, source))
    assert waiting(tmp_path) == 4 * 100 + (parent != "pass") + 1


def test_a_child_goes_on_after_its_parent_has_stopped(tmp_path: Path) -> None:
    """The last connection that closes removes the log: the parent's must know that there is another."""
    source = """
record(0)
(word, to_parent), (stopped, to_child) = os.pipe(), os.pipe()
pid = os.fork()
if not pid:
    record(1)
    os.write(to_parent, b"!")
    os.read(stopped, 1)
    for number in range(2, 101):
        record(number)
    os._exit(0)
os.read(word, 1)
collector.stop()
os.write(to_child, b"!")
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    ended(program(tmp_path, source))
    assert waiting(tmp_path) == 101


def test_a_fork_amid_commits_spoils_nothing_in_parent_or_child(tmp_path: Path) -> None:
    source = """
is_over = False

def busy(first):
    for number in itertools.count(first):
        if is_over:
            print(f"{number - first}\\n", end="", flush=True)  # one write: two threads do not mix their lines
            return
        record(number)

threads = [threading.Thread(target=busy, args=(first,)) for first in (10**6, 2 * 10**6)]
for thread in threads:
    thread.start()
children = []
for child in range(10):
    pid = os.fork()
    if not pid:
        for number in range(20):
            record(child * 1000 + number)
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
is_over = True
for thread in threads:
    thread.join()
assert collector.stop().waiting_events >= 200
"""
    said = ended(program(tmp_path, f"import itertools, threading\n{source}"))
    assert waiting(tmp_path) == 200 + sum(map(int, said.split()))


def test_threads_and_a_handler_of_signals_may_fork_at_once(tmp_path: Path) -> None:
    source = """
is_over = False

def fork(*_):
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)

def busy():
    while not is_over:
        fork()

signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.1)
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(200):
    record(number)
is_over = True
for thread in threads:
    thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    ended(program(tmp_path, f"import signal, threading\n{source}"))
    assert waiting(tmp_path) == 200


def test_a_fork_that_python_does_not_know_of_is_refused_a_collector_that_ran_before(tmp_path: Path) -> None:
    source = """
import ctypes
record(0)
pid = ctypes.PyDLL(None).fork()  # with the interpreter lock, as uWSGI: else the child may wait for it for ever
if not pid:
    ctypes.pythonapi.PyOS_AfterFork_Child()
    try:
        record(1)
    except CollectorError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
record(2)
"""
    said = ended(program(tmp_path, f"from collector import CollectorError\n{source}"))
    assert "start the collector after the fork" in said
    assert waiting(tmp_path) == 2


def test_a_child_does_not_hold_its_parents_role(tmp_path: Path) -> None:
    """The parent delivers, forks and is killed: the child takes over, though it has inherited the parent's files."""
    source = """
record(0)
pid = os.fork()
if not pid:
    record(1)
    print(os.getpid(), flush=True)
    time.sleep(60)
os.waitpid(pid, 0)
"""
    process = program(tmp_path, source)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    lock = tmp_path / "queue" / "flusher.lock"
    assert int(lock.read_text()) == process.pid
    process.kill()
    process.wait()
    try:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while lock.read_text() != f"{child}\n":  # for a moment it is empty
            assert time.monotonic() < give_up, "nobody has taken over"
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()
