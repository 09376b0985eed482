"""The queue's file: its pragmas, its schema, and which files are refused."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from collector.errors import DiskFull, QueueBroken, QueueDamaged, QueueUnavailable
from collector.queue.sqlite.database import (
    APPLICATION_ID,
    FILE_NAME,
    MIGRATIONS,
    make_file,
    migrate,
    open_reader,
    open_writer,
    translate,
)
from tests.queue.samples import child, hear, tell

OPENERS = pytest.mark.parametrize("open_file", [open_writer, open_reader])
Opener = Callable[[Path], sqlite3.Connection]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


@pytest.fixture
def directory(file: Path) -> Path:
    """One in which a file was made."""
    make_file(file)
    return file.parent


@pytest.fixture
def connection(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection to an empty file, as `migrate` gets it."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("auto_vacuum", 2),
        ("wal_autocheckpoint", 4000),
        ("journal_size_limit", 64 * 2**20),
        ("busy_timeout", 10_000),
        ("cache_size", -16 * 1024),
        ("secure_delete", 0),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("foreign_keys", 1),
    ],
)
def test_a_pragma_is_in_force_in_a_new_file_and_in_one_opened_again(
    directory: Path, name: str, value: object, is_new: bool
) -> None:
    if not is_new:
        open_writer(directory).close()
    with closing(open_writer(directory)) as connection:
        assert pragma(connection, name) == value


@pytest.mark.parametrize("is_new", [True, False])
def test_the_writer_is_amid_no_transaction_that_would_keep_a_checkpoint_off(directory: Path, is_new: bool) -> None:
    if not is_new:
        open_writer(directory).close()
    with closing(open_writer(directory)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone() == (0, 0, 0)


def test_a_new_file_has_the_latest_schema(directory: Path) -> None:
    with closing(open_writer(directory)) as connection:
        assert pragma(connection, "user_version") == len(MIGRATIONS)
        assert tables(connection) >= {"app", "segment", "seen", "pruned", "dead"}
        assert connection.execute("SELECT keys FROM pruned").fetchall() == [(0,)]
    assert (directory / FILE_NAME).read_bytes()[68:72] == APPLICATION_ID.to_bytes(4, "big")


def test_opening_again_leaves_what_is_there(directory: Path) -> None:
    with closing(open_writer(directory)) as connection:
        connection.execute("INSERT INTO seen VALUES (x'01', 7)")
    with closing(open_writer(directory)) as connection:
        assert connection.execute("SELECT key, stamp FROM seen").fetchall() == [(b"\x01", 7)]
        assert connection.execute("SELECT keys FROM pruned").fetchall() == [(0,)]


def test_migrations_run_in_order_and_each_statement_of_a_script_runs(
    connection: sqlite3.Connection, file: Path
) -> None:
    scripts = (
        "CREATE TABLE step (n INTEGER);  -- the first; of all\nINSERT INTO step\n  VALUES (1);\n",
        (
            "ALTER TABLE step RENAME TO steps;\nCREATE TRIGGER twice AFTER INSERT ON steps WHEN new.n < 100 BEGIN\n"
            "  INSERT INTO steps VALUES (new.n * 100);\n  SELECT 1;\nEND;\nINSERT INTO steps VALUES (2);\n"
        ),
        "INSERT INTO steps SELECT max(n) + 3 FROM steps;",
    )
    migrate(connection, file, scripts)
    assert [n for (n,) in connection.execute("SELECT n FROM steps ORDER BY rowid")] == [1, 2, 200, 203]
    assert pragma(connection, "user_version") == 3


def test_only_the_migrations_that_a_file_has_not_seen_are_run(connection: sqlite3.Connection, file: Path) -> None:
    first = "CREATE TABLE step (n INTEGER);"
    migrate(connection, file, (first,))
    migrate(connection, file, (first, "INSERT INTO step VALUES (2);", "INSERT INTO step VALUES (3);"))
    assert connection.execute("SELECT n FROM step").fetchall() == [(2,), (3,)]
    assert pragma(connection, "user_version") == 3


def test_all_migrations_are_one_transaction(connection: sqlite3.Connection, file: Path) -> None:
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    migrate(connection, file, ("CREATE TABLE one (n);", "CREATE TABLE two (n);"))
    connection.set_trace_callback(None)
    assert (statements[0], statements[-1]) == ("BEGIN IMMEDIATE", "COMMIT")
    assert sum(statement.startswith(("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT")) for statement in statements) == 2
    assert [statement for statement in statements if statement.startswith("CREATE")] == [
        "CREATE TABLE one (n);",
        "CREATE TABLE two (n);",
    ]


def test_a_migration_that_fails_leaves_the_file_as_it_was(connection: sqlite3.Connection, file: Path) -> None:
    migrate(connection, file, ("CREATE TABLE one (n);",))
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(connection, file, ("CREATE TABLE one (n);", "CREATE TABLE two (n);", "INSERT INTO nowhere VALUES (1);"))
    assert tables(connection) == {"one"}
    assert pragma(connection, "user_version") == 1
    assert not connection.in_transaction


def test_a_newer_file_is_refused_by_migrate_and_stays_as_it_is(connection: sqlite3.Connection, file: Path) -> None:
    migrate(connection, file, ("CREATE TABLE one (n);", "CREATE TABLE two (n);"))
    with pytest.raises(QueueBroken, match=r"version 2, newer than this collector's 1"):
        migrate(connection, file, ("CREATE TABLE one (n);",))
    assert pragma(connection, "user_version") == 2
    assert not connection.in_transaction


@pytest.mark.parametrize("open_file", [open_writer, open_reader])
def test_a_newer_file_is_refused_with_its_name_and_a_remedy(directory: Path, file: Path, open_file: Opener) -> None:
    remedy = "install the version that wrote it, or set queue.path to another directory"
    newer = len(MIGRATIONS) + 1
    with closing(open_writer(directory)) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    with pytest.raises(QueueBroken) as refusal:
        open_file(directory)
    for part in (str(file), f"version {newer}", remedy):
        assert part in str(refusal.value)
    with closing(sqlite3.connect(file)) as connection:
        assert pragma(connection, "user_version") == newer


def test_the_reader_refuses_a_file_that_is_not_migrated_yet(tmp_path: Path, file: Path) -> None:
    file.touch()
    with pytest.raises(QueueBroken, match="start the daemon of this version once to migrate it"):
        open_reader(tmp_path)


def test_the_writer_makes_no_file(tmp_path: Path, file: Path) -> None:
    with pytest.raises(QueueUnavailable) as refusal:
        open_writer(tmp_path)
    assert str(file) in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_the_writer_refuses_an_empty_file_and_leaves_it_empty(tmp_path: Path, file: Path) -> None:
    file.touch()
    with pytest.raises(QueueUnavailable, match="start the daemon of this version: it takes the file over"):
        open_writer(tmp_path)
    assert file.read_bytes() == b""


def test_the_reader_refuses_a_directory_without_a_file_and_makes_none(tmp_path: Path, file: Path) -> None:
    with pytest.raises(QueueBroken, match="does not exist") as refusal:
        open_reader(tmp_path)
    assert str(file) in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@OPENERS
@pytest.mark.parametrize("version", [0, len(MIGRATIONS)])
def test_a_database_of_another_program_is_refused_and_keeps_its_data(
    tmp_path: Path, file: Path, open_file: Opener, version: int
) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE app (name)")
        connection.execute("INSERT INTO app VALUES ('theirs')")
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(QueueBroken, match=r"is a database of another program; set queue\.path") as refusal:
        open_file(tmp_path)
    assert str(file) in str(refusal.value)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT name FROM app").fetchall() == [("theirs",)]
        assert tables(connection) == {"app"}
        assert (pragma(connection, "user_version"), pragma(connection, "application_id")) == (version, 0)
        assert pragma(connection, "journal_mode") == "delete"


@OPENERS
@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"not a database " * 1000, b"\0" * 5000, b"SQLite format 3\0", b"SQLite format 3\0" + b"\xa5" * 8176],
    ids=["short text", "long text", "zeros", "magic alone", "magic and garbage"],
)
def test_what_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, file: Path, open_file: Opener, content: bytes
) -> None:
    file.write_bytes(content)
    with pytest.raises(QueueBroken, match="is damaged or not a database") as refusal:
        open_file(tmp_path)
    assert str(file) in str(refusal.value)
    assert "collector queue recover" in str(refusal.value)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "statement", ["INSERT INTO seen VALUES (x'01', 1)", "DELETE FROM segment", "PRAGMA user_version = 9"]
)
def test_the_reader_cannot_write(directory: Path, statement: str) -> None:
    with (
        closing(open_writer(directory)),
        closing(open_reader(directory)) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        reader.execute(statement)


def test_the_reader_sees_what_the_writer_has_committed_and_nothing_before(directory: Path) -> None:
    with closing(open_writer(directory)) as writer, closing(open_reader(directory)) as reader:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO seen VALUES (x'01', 1)")
        assert reader.execute("SELECT count(*) FROM seen").fetchone() == (0,)
        writer.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM seen").fetchone() == (1,)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, DiskFull),
        (sqlite3.SQLITE_IOERR_SHMSIZE, DiskFull),
        (sqlite3.SQLITE_CORRUPT, QueueDamaged),
        (sqlite3.SQLITE_CORRUPT_INDEX, QueueDamaged),
        (sqlite3.SQLITE_NOTADB, QueueDamaged),
        (sqlite3.SQLITE_BUSY, QueueUnavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, QueueUnavailable),
        (sqlite3.SQLITE_IOERR_FSYNC, QueueUnavailable),
        (sqlite3.SQLITE_READONLY, QueueUnavailable),
    ],
)
def test_an_error_of_sqlite_becomes_what_the_caller_must_do(file: Path, code: int, expected: type[Exception]) -> None:
    error = sqlite3.OperationalError("so it says")
    error.sqlite_errorcode = code
    assert type(translate(error, file)) is expected
    assert str(file) in str(translate(error, file))


OPEN_AND_PUT = """
import pathlib, sys
from collector.queue.sqlite.database import open_writer
from collector.queue.sqlite.lock import Presence
from collector.queue.sqlite.rescue.ready import make_ready
directory = pathlib.Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
Presence(directory).enter(alone=lambda: make_ready(directory), patience_seconds=10)
connection = open_writer(directory)
connection.execute("INSERT INTO seen VALUES (?, 1)", (sys.argv[2].encode(),))
connection.close()
print("done", flush=True)
"""


def test_processes_that_open_a_new_directory_at_once_do_not_collide(tmp_path: Path) -> None:
    names = ["one", "three", "two", "zero"]
    with ExitStack() as stack:
        processes = [stack.enter_context(child(OPEN_AND_PUT, tmp_path / "queue", name)) for name in names]
        assert {hear(process) for process in processes} == {"ready"}
        for process in processes:
            tell(process)
        assert {hear(process) for process in processes} == {"done"}
    with closing(open_reader(tmp_path / "queue")) as reader:
        assert reader.execute("SELECT key FROM seen").fetchall() == [(name.encode(),) for name in names]
        assert reader.execute("SELECT keys FROM pruned").fetchall() == [(0,)]
