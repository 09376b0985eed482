"""A machine of our own in a container: a real systemd as process 1, over a copy-on-write view of this machine's files.

systemd-nspawn boots it in half a second; what is changed in there is gone at its end. The collector is seen in it at
/opt/collector, as it is in this checkout and with this interpreter, and the units of `systemd/` are installed as they
are. Nobody registers the container anywhere, so it is entered by its namespaces.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from tests.system.conftest import missing, program

ROOT = Path(__file__).parents[2]
BOOT_SECONDS = 60.0
STOP_SECONDS = 20.0
CLONE_NEWNET = 0x40000000

# Of a boot: what would wait for hardware, or for a network that is not there.
MASKED = (
    "getty.target console-getty.service systemd-timesyncd.service systemd-networkd.service systemd-resolved.service "
    "systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket"
)
# IPAddressDeny= and SocketBindDeny= are enforced by BPF programs, which a container may load only if it is allowed to.
FLAGS = (
    "--boot --register=no --keep-unit --private-network --console=read-only --link-journal=no --resolv-conf=off "
    "--timezone=off --capability=CAP_BPF,CAP_NET_ADMIN --system-call-filter=bpf"
)
# Disks of other tests, which unmount them while the box runs, must not stay mounted in here: first of all they go.
SCRIPT = f"""
awk '/^[/]dev[/]loop/ {{ print $2 }}' /proc/mounts | tac | xargs -r umount --lazy
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/box && mount -t tmpfs tmpfs /run/box && cd /run/box && mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
rm -rf etc/systemd/system/*.wants
: > etc/machine-id
: > etc/fstab
for unit in {MASKED}; do ln -sf /dev/null etc/systemd/system/$unit; done
cp -r "$LAYER"/. .
exec systemd-nspawn {FLAGS} "$@" --directory .
"""


class Box:
    """A booted machine. `run` runs commands in it; a test enters its network with `network`."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            missing("only root can boot a container")
        for name in ("systemd-nspawn", "nsenter", "unshare", "systemd-analyze"):
            program(name)
        layer = folder / "layer"
        self._console = folder / "console.log"
        self._cursor = ""
        command = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", SCRIPT, "box", *_lay(layer)]
        with self._console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                command,
                env={**os.environ, "LAYER": str(layer)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._init = self._booted()
        except BaseException:
            self.stop()
            raise

    @property
    def root(self) -> Path:
        """Its files, as seen from outside."""
        return Path(f"/proc/{self._init}/root")

    def run(self, *words: str, check: bool = True) -> str:
        """What a command in there prints. Raises AssertionError with all it said where it fails and `check` is set."""
        done = self._enter(self._init, *words)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", *words).strip()

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` says it."""
        return self.systemctl("show", "-P", name, unit)

    def log(self, unit: str, event: str) -> list[dict[str, object]]:
        """The entries that a unit's collector has logged for an event."""
        entries = (json.loads(line) for line in self.journal(unit).splitlines() if line.startswith("{"))
        return [entry for entry in entries if entry.get("event") == event]

    def mark(self) -> None:
        """The journal begins here."""
        self._cursor = self.run("journalctl", "--lines=0", "--show-cursor").rpartition("-- cursor: ")[2].strip()

    def journal(self, unit: str) -> str:
        since = [f"--after-cursor={self._cursor}"] if self._cursor else []
        return self.run("journalctl", "--quiet", "--output=cat", f"--unit={unit}", *since)

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        file.chmod(mode)

    def process(self, unit: str) -> int:
        """The number that a unit's main process has outside."""
        inside = self.property(unit, "MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()
                if numbers[1] != numbers[-1] == inside and self._is_ours(status.parent):
                    return int(numbers[1])
        raise AssertionError(f"{unit} has no process")

    def may_read(self, unit: str, file: str) -> bool:
        """Whether the unit's user may, with what its main process sees of the machine."""
        process = self.process(unit)
        user = str(Path(f"/proc/{process}").stat().st_uid)
        entered = ["nsenter", "-t", str(process), "-U", "-m", "-n", "-p", "-S", user, "-G", user, "--"]
        return subprocess.run([*entered, "head", "-c", "1", file], check=False, capture_output=True).returncode == 0

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """This thread, and what it starts, is in the box's network meanwhile: 127.0.0.1 is the box's own."""
        with Path("/proc/self/ns/net").open("rb") as ours, Path(f"/proc/{self._init}/ns/net").open("rb") as theirs:
            _set_network(theirs.fileno())
            try:
                yield
            finally:
                _set_network(ours.fileno())

    def stop(self) -> None:
        self._nspawn.terminate()
        try:
            self._nspawn.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()

    def _booted(self) -> int:
        deadline = time.monotonic() + BOOT_SECONDS
        state = "it has no process 1"
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            init = self._find_init()
            if init is not None:
                state = self._enter(init, "systemctl", "is-system-running").stdout.strip()
                if state in {"running", "degraded"}:
                    return init
            time.sleep(0.05)
        console = self._console.read_text(encoding="utf-8", errors="replace")
        if self._nspawn.poll() is not None and "not permitted" in console:
            missing(f"no container can be booted here: {console[-500:]}")
        raise AssertionError(f"the box did not boot: {state}\n{console[-2000:]}")

    def _find_init(self) -> int | None:
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return None

    def _enter(self, init: int, *words: str) -> subprocess.CompletedProcess[str]:
        environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_PAGER=", "HOME=/root"]
        entered = ["nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i", *environment]
        return subprocess.run([*entered, *words], check=False, capture_output=True, text=True, timeout=120)

    def _is_ours(self, process: Path) -> bool:
        return (process / "ns" / "pid").readlink() == Path(f"/proc/{self._init}/ns/pid").readlink()


def _lay(layer: Path) -> list[str]:
    """Makes the files that the box has beside the machine's own; returns what else nspawn must show in it.

    A unit sees neither /home nor /root nor /tmp of its machine, where interpreter and checkout may be.
    """
    base = Path(sys.base_prefix)
    interpreter = Path(os.path.realpath(sys.executable))
    binds = [
        f"--bind-ro={ROOT}:/opt/collector/source",
        f"--bind-ro={sysconfig.get_path('purelib')}:/opt/collector/packages",
    ]
    if base != Path("/usr"):
        binds.append(f"--bind-ro={base}:/opt/collector/python")
        interpreter = Path("/opt/collector/python") / interpreter.relative_to(base.resolve())
    for folder in ("source", "packages", "python", "bin"):
        (layer / "opt/collector" / folder).mkdir(parents=True)
    command = layer / "opt/collector/bin/collector"
    command.write_text(
        "#!/bin/sh\n"
        "export PYTHONPATH=/opt/collector/source:/opt/collector/packages LD_LIBRARY_PATH=/opt/collector/python/lib\n"
        f'exec {interpreter} -m collector "$@"\n',
        encoding="utf-8",
    )
    command.chmod(0o755)
    units = layer / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in (ROOT / "systemd").iterdir():
        shutil.copy(unit, units)
    return binds


def _set_network(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
