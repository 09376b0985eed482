"""The Containerfile, built and run for real: locked down, over a shared Unix socket, and right as process 1.

The base is this machine's own Python (see images.py), the packages come from wheels, so that nothing is fetched.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from collector.config.load import keys
from collector.sandbox.server import Sandbox
from collector.sandbox.state import State
from tests.e2e.books import settled
from tests.patience import until
from tests.system.conftest import ROOT
from tests.system.images import BASE, IMAGE, LOCKED_DOWN, Podman, build_context, import_base

UID = 10001
OFFLINE = "--no-index --find-links wheels usage-collector"
OWN_BYTES = 80 * 2**20
"""What the collector may add to its base."""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Podman]:
    """With the image built."""
    folder = tmp_path_factory.mktemp("podman")
    podman = Podman(folder)
    try:
        import_base(podman, folder)
        context = folder / "context"
        context.mkdir()
        with build_context(context, wheels):
            arguments = ("--build-arg", f"PYTHON_IMAGE={BASE}", "--build-arg", f"INSTALL={OFFLINE}")
            where = ("--isolation", "chroot", "--network", "host", "--pull=never", "--format", "docker")
            podman("build", "--quiet", *where, *arguments, "-t", IMAGE, "-f", f"{context}/Containerfile", str(context))
        yield podman
    finally:
        podman.remove()


class Container:
    """One that runs in the background, its state and its sockets in folders of the machine."""

    def __init__(self, podman: Podman, name: str, folder: Path) -> None:
        self._podman = podman
        self.name = name
        self.socket = folder / "sockets" / "http.sock"
        self.queue = folder / "queue"

    def start(self, network: str, **settings: str) -> None:
        volumes = []
        for path, place in ((self.queue, "/var/lib/collector"), (self.socket.parent, "/run/collector")):
            path.mkdir(exist_ok=True)
            os.chown(path, UID, UID)
            volumes += ["-v", f"{path}:{place}"]
        variables = [word for key, value in settings.items() for word in ("-e", f"COLLECTOR_{key.upper()}={value}")]
        self._podman(
            *("run", "--detach", "--quiet", "--name", self.name, "--network", network, "--health-interval", "disable"),
            *(*LOCKED_DOWN, *volumes, *variables, IMAGE),
        )

    def is_healthy(self) -> bool:
        """What the image's own HEALTHCHECK says, run once."""
        words = self._podman.command("healthcheck", "run", self.name)
        return subprocess.run(words, env=self._podman.variables, capture_output=True, check=False).returncode == 0

    def exec(self, *words: str, status: int = 0) -> str:
        return self._podman("exec", self.name, *words, status=status)

    @property
    def process(self) -> int:
        """Process 1 of the container, by its number outside."""
        return int(self._podman.inspect(self.name)["State"]["Pid"])

    async def listens(self) -> None:
        """Returns when it answers."""
        await until(lambda: asyncio.to_thread(self._is_ready), pause_seconds=0.1)

    def _is_ready(self) -> bool:
        words = self._podman.command("exec", self.name, "collector", "healthcheck", "--ready")
        return subprocess.run(words, env=self._podman.variables, capture_output=True, check=False).returncode == 0

    async def post(self, numbers: range) -> None:
        """Posts events over the shared socket."""
        events = [
            {"timestamp": number, "email": "person@example.com", "eventName": "seen", "appId": "wiki"}
            for number in numbers
        ]
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post("http://localhost/v1/events", json=events) as answer,
        ):
            assert (await answer.json())["accepted"] == len(events)

    def stop(self) -> tuple[int, str]:
        """SIGTERM: the exit code and the log."""
        self._podman("stop", "--time", "20", self.name)
        code = int(self._podman.inspect(self.name)["State"]["ExitCode"])
        logged = subprocess.run(
            self._podman.command("logs", self.name),
            env=self._podman.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return code, logged.stdout


@asynccontextmanager
async def running(
    podman: Podman, name: str, folder: Path, network: str = "host", **settings: str
) -> AsyncIterator[Container]:
    container = Container(podman, name, folder)
    try:
        await asyncio.to_thread(container.start, network, http__listen="127.0.0.1:0", log__format="json", **settings)
        await container.listens()
        yield container
    finally:
        podman("rm", "--force", "--time", "0", "--ignore", name)


def upstream(url: str) -> dict[str, str]:
    return {
        "upstream__base_url": url,
        "upstream__token_url": f"{url}/oauth2/token",
        "upstream__client_id": "sandbox",
        "upstream__client_secret": "sandbox",
    }


@pytest.fixture
async def sandbox(state: State) -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(state, create_apps=True)
    await sandbox.start("127.0.0.1", 0)
    yield sandbox
    await sandbox.stop()


def test_the_image_is_small_runs_as_nobody_and_says_how_it_is(podman: Podman) -> None:
    image, base = podman.inspect(IMAGE), podman.inspect(BASE)
    own = image["Size"] - base["Size"]
    print(f"\nimage {image['Size'] / 1e6:.0f} MB, of which the collector {own / 1e6:.0f} MB")  # noqa: T201 - to be said
    assert own < OWN_BYTES
    config = image["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == (f"{UID}:{UID}", ["collector"], ["run"])
    assert list(config["Volumes"]) == ["/var/lib/collector"]
    assert image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"] == [
        "CMD",
        "collector",
        "healthcheck",
    ]


async def test_events_over_the_shared_socket_are_delivered_and_a_stop_drains(
    podman: Podman, tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    settings = upstream(sandbox.url) | {"flush__linger": "1h"}  # nothing leaves before the stop
    async with running(podman, "drained", tmp_path, **settings) as container:
        await container.post(range(2500))
        assert await asyncio.to_thread(container.is_healthy)
        said = await asyncio.to_thread(container.exec, "collector", "drain", "--deadline", "0s", "--json", status=75)
        assert msgspec.json.decode(said)["waitingEvents"] == 500, "full batches have left"
        code, logged = await asyncio.to_thread(container.stop)
    assert code == 0
    stopped = [line for line in map(json.loads, logged.splitlines()) if line["event"] == "agent.stopped"]
    assert [line["waiting_events"] for line in stopped] == [0]
    await settled(state, 2500)


async def test_what_a_killed_container_without_a_network_has_accepted_is_delivered_by_the_next(
    podman: Podman, tmp_path: Path, sandbox: Sandbox, state: State
) -> None:
    async with running(podman, "killed", tmp_path, "none", **upstream("http://127.0.0.1:1")) as container:
        await container.post(range(700))
        podman("kill", "--signal", "KILL", "killed")
    async with running(podman, "next", tmp_path, **upstream(sandbox.url)) as container:
        await settled(state, 700)
        assert container.socket.exists()


async def test_as_process_1_it_leaves_no_zombies(podman: Podman, tmp_path: Path) -> None:
    """What an `exec` leaves behind becomes a child of process 1 when it ends."""
    orphan = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(0.2)\n"
    async with running(podman, "reaper", tmp_path, **upstream("http://127.0.0.1:1")) as container:
        process = await asyncio.to_thread(lambda: container.process)
        children = Path(f"/proc/{process}/task/{process}/children")
        writer = children.read_text()
        assert len(writer.split()) == 1
        await asyncio.to_thread(container.exec, "python3", "-c", orphan)
        await until(lambda: children.read_text() == writer)


@pytest.mark.parametrize("name", ["kubernetes-sidecar.yaml", "compose.yaml"])
def test_manifests_name_what_the_image_has(name: str) -> None:
    document = msgspec.yaml.decode((ROOT / "deploy" / name).read_bytes())
    if "services" in document:
        collector = document["services"]["collector"]
        mounts = [volume.rpartition(":")[2] for volume in collector["volumes"]]
        variables = list(collector["environment"])
    else:
        (collector,) = document["spec"]["template"]["spec"]["initContainers"]
        assert collector["restartPolicy"] == "Always", "else it is no sidecar"
        mounts = [mount["mountPath"] for mount in collector["volumeMounts"]]
        variables = [variable["name"] for variable in collector["env"]]
    assert {"/var/lib/collector", "/run/collector"} <= set(mounts)
    assert set(variables) <= {key.variable for key in keys()}
