"""Images and containers for tests: podman with its own storage, and a base image made of this machine's own Python.

Nothing is fetched: the base is the interpreter, its standard library, pip, the shared libraries that these need, and a
shell for the build. Podman gets a mount namespace with a plain cgroup2, as machines with hybrid cgroups have none.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.conftest import ROOT, missing, outer_python, program

BASE = "localhost/python-of-this-machine"
IMAGE = "localhost/usage-collector"
USER = "10001:10001"
LOCKED_DOWN = (
    *("--user", USER, "--read-only", "--tmpfs", "/tmp", "--cap-drop=all"),  # noqa: S108 - the container's
    *("--security-opt", "no-new-privileges", "--cgroups=disabled"),
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1000:1000"),
)
LEFT_OUT = {"test", "idlelib", "turtledemo", "lib2to3", "tkinter", "__pycache__"}
BUILD_TOOLS = ("sh", "mkdir")
WHEELS_NEED = (
    "libc.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libm.so.6",
    "libgcc_s.so.1",
    "libstdc++.so.6",
)
"""What a manylinux wheel may take for granted (PEP 600), as far as ours do."""


class Podman:
    """podman with storage in one folder. `remove` it at the end."""

    def __init__(self, folder: Path) -> None:
        for name in ("podman", "buildah", "crun", "unshare"):
            program(name)
        if os.geteuid() != 0:
            missing("containers are made by root here")
        self._storage = folder / "storage.conf"
        self._graph, self._run = folder / "graph", folder / "run"
        lines = ["[storage]", 'driver = "overlay"', f'graphroot = "{self._graph}"', f'runroot = "{self._run}"']
        self._storage.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def __call__(self, *words: str, status: int = 0) -> str:
        """What the command said on standard output."""
        ended = subprocess.run(self.command(*words), env=self.variables, capture_output=True, text=True, check=False)
        assert ended.returncode == status, f"{words}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    @property
    def variables(self) -> dict[str, str]:
        """Its environment."""
        return os.environ | {"CONTAINERS_STORAGE_CONF": str(self._storage), "BUILDAH_ISOLATION": "chroot"}

    def command(self, *words: str) -> list[str]:
        """The command line, in a mount namespace of its own."""
        inside = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec podman "$@"'
        return ["unshare", "-m", "--propagation", "private", "sh", "-c", inside, "sh", *words]

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of an image or a container."""
        found: dict[str, Any] = json.loads(self("inspect", name))[0]
        return found

    def remove(self) -> None:
        """No container runs and nothing is stored any more."""
        self("system", "reset", "--force")


def import_base(podman: Podman, folder: Path) -> None:
    """The base image is there under its name."""
    archive = folder / "base.tar"
    with tarfile.open(archive, "w") as tar:
        for path, place in _base_files():
            tar.add(path, place, recursive=False)
        for place, target in (("usr/local/bin/python3", _name()), ("usr/local/bin/python", _name())):
            link = tarfile.TarInfo(place)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for place in ("tmp", "proc", "sys", "dev", "etc", "var/lib", "run", "src"):
            made = tarfile.TarInfo(place)
            made.type, made.mode = tarfile.DIRTYPE, 0o1777 if place == "tmp" else 0o755
            tar.addfile(made)
    podman("import", "--quiet", str(archive), BASE)
    archive.unlink()


@contextmanager
def build_context(folder: Path, wheels: Path) -> Iterator[Path]:
    """What the Containerfile builds from: the files of the checkout, and wheels beside them."""
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "Containerfile", ".containerignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("collector", "systemd"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(wheels, folder / "wheels")
    yield folder


def _name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _abi() -> str:
    return {"x86_64": "x86-64", "aarch64": "AArch64"}.get(os.uname().machine, os.uname().machine)


def _base_files() -> Iterator[tuple[Path, str]]:
    """Each file of the base image, and its place there."""
    python = outer_python().resolve()
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    yield python, f"usr/local/bin/{_name()}"
    binaries = [python]
    for file in sorted(library.rglob("*")):
        place = file.relative_to(library)
        if LEFT_OUT.isdisjoint(place.parts) and _is_wanted(place):
            yield file, f"usr/local/lib/{_name()}/{place}"
            if file.suffix == ".so":
                binaries.append(file)
    for name in BUILD_TOOLS:
        tool = Path(program(name)).resolve()
        binaries.append(tool)
        yield tool, f"bin/{name}"
    cached = subprocess.run([program("ldconfig"), "-p"], capture_output=True, text=True, check=True).stdout
    shared = {path for binary in binaries for path in _libraries_of(binary)}
    for name in WHEELS_NEED:
        shared |= set(re.findall(rf"^\s*{re.escape(name)} \(libc6,{_abi()}\) => (/\S+)$", cached, re.MULTILINE))
    places = {str(Path(path).parent.resolve() / Path(path).name).lstrip("/"): Path(path).resolve() for path in shared}
    yield from ((path, place) for place, path in places.items())
    for folder in ("lib", "lib64"):
        if Path("/", folder).is_symlink():
            yield Path("/", folder), folder


def _is_wanted(place: Path) -> bool:
    """Of what was installed into the interpreter itself, pip alone."""
    return place.parts[0] != "site-packages" or len(place.parts) == 1 or place.parts[1] == "pip"


def _libraries_of(binary: Path) -> list[str]:
    listed = subprocess.run([program("ldd"), str(binary)], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+) \(0x", listed)
