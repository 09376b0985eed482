"""A disk that fails on demand: a daemon's writes or syncs return an error while a file says so, without privileges.

A library of a few lines (`disk_faults.c`) stands between the daemon and the C library, by LD_PRELOAD, so that SQLite's
own handling of the error is what is tested. It is compiled here; the collector itself needs no compiler. Alternatives
that were left: device-mapper needs root and its error target fails reads as well; an SQLite VFS would have to be
loaded by the collector; strace slows every call down.
"""

import errno
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("disk_faults.c")


class FailingDisk:
    """The disk under one directory, for one daemon that is started with `variables`."""

    def __init__(self, folder: Path, under: Path, compiler: str) -> None:
        library = folder / "disk_faults.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
        self._control = folder / "disk_faults.control"
        self.variables = {
            "LD_PRELOAD": str(library),
            "DISK_FAULTS_CONTROL": str(self._control),
            "DISK_FAULTS_UNDER": f"{under.absolute()}/",
        }

    def fail(self, call: str, number: int) -> None:
        """From now on each write ("write") or sync ("sync") fails with this errno."""
        assert number in errno.errorcode
        made = self._control.with_suffix(".new")
        made.write_text(f"{call} {number}\n", encoding="ascii")
        made.rename(self._control)

    def heal(self) -> None:
        """Nothing fails any more."""
        self._control.unlink(missing_ok=True)
