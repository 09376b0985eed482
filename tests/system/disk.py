"""Disks for tests: small ones, which fill up or lose their power, and one that fails on demand.

A small disk is a file system of its own, in memory or in a file; only root can mount one.

The one that fails on demand needs no privileges: a daemon's writes or syncs return an error while a file says so.
A library of a few lines (`disk_faults.c`) stands between the daemon and the C library, by LD_PRELOAD, so that SQLite's
own handling of the error is what is tested. It is compiled here; the collector itself needs no compiler. Alternatives
that were left: device-mapper needs root and its error target fails reads as well; an SQLite VFS would have to be
loaded by the collector; strace slows every call down.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.system.conftest import missing, program

EXT4_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN of fs/ext4/ext4.h
WITHOUT_FLUSHING = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH

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


class SmallDisk:
    """A file system of its own at `folder`; of kind "ext4" (in a file) or "tmpfs" (in memory)."""

    def __init__(self, image: Path, folder: Path, kind: str, size_mib: int) -> None:
        self.folder = folder
        self._kind = kind
        self._image = image
        self._options = [f"size={size_mib}m"] if kind == "tmpfs" else ["loop"]
        if kind == "ext4":
            with image.open("wb") as file:
                file.truncate(size_mib * 2**20)
            subprocess.run([program("mkfs.ext4"), "-q", "-m", "0", str(image)], check=True)

    def mount(self) -> None:
        source = str(self._image) if self._kind == "ext4" else "none"
        words = [program("mount"), "-t", self._kind, "-o", ",".join(self._options), source, str(self.folder)]
        result = subprocess.run(words, check=False, capture_output=True, text=True)
        if result.returncode:
            missing(f"cannot mount {self._kind} here: {result.stderr.strip()}")

    def unmount(self) -> None:
        subprocess.run([program("umount"), str(self.folder)], check=True)

    def stop_writing(self) -> None:
        """The power is cut: what was not synced is lost, nothing is written any more. Of ext4 alone.

        Nobody may act on a sync that ends amid this: the kernel says of some that they succeeded, and loses what they
        synced (Linux 6.18: the last of a bare loop of fdatasync in 18 of 60 cuts).
        """
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
        finally:
            os.close(descriptor)

    def restart(self) -> None:
        """The file system is there again, as after a reboot. Nobody may have a file of it open. Of ext4 alone.

        It comes from a copy of the image: a container that began before the power was cut has the old one mounted
        still, and as long as it does, the kernel would mount that one again, which writes nothing any more.
        """
        self.unmount()
        copy = self._image.with_suffix(".copy")
        shutil.copyfile(self._image, copy)
        copy.replace(self._image)
        self.mount()

    def fill(self) -> None:
        """Another program takes all the room that is left."""
        with (self.folder / "of-another-program").open("ab", buffering=0) as file:
            for size in (2**20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def clear(self) -> None:
        """The other program gives its room back."""
        (self.folder / "of-another-program").unlink()


@contextlib.contextmanager
def small_disk(folder: Path, kind: str, size_mib: int) -> Iterator[SmallDisk]:
    """A small disk that is mounted under `folder` for the length of a block. Skips the test where that cannot be."""
    if os.geteuid() != 0:
        missing("only root can mount a file system")
    place = folder / "disk"
    place.mkdir()
    disk = SmallDisk(folder / "disk.image", place, kind, size_mib)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()
