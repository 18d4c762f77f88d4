"""A real Podman for the tests, as engine.py has Docker: root's, with its network in a namespace of its own.

    c1, c2 -- podman0 10.88.0.1 -- [host: eth0 198.51.100.2] -- [wan: eth0 198.51.100.1, lo 203.0.113.1]

It runs from a root of another distribution only (scripts/engines, DNETTRACE_PODMAN_ROOT): an installed one keeps its name
server's files where those of the machine's own containers are.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.functional.engine import (
    BASE,
    NETNS,
    WITHIN,
    cache,
    clear,
    clear_leftovers,
    find_busybox,
    image,
    in_netns,
    make_network,
    until_it_answers,
)


class Podman:
    """One running service. Made by `private_podman`."""

    def __init__(self, name: str, home: Path, root: Path) -> None:
        self.name = name
        self.home = home
        self.root = root
        self.address = f"unix://{home}/podman.sock"
        self.host_netns = str(NETNS / f"{name}-host")
        self.wan_netns = str(NETNS / f"{name}-wan")
        # runc, since crun refuses what systemd calls the hybrid hierarchy of cgroups
        self.local = ["/usr/bin/podman", "--root", f"{home}/data", "--runroot", f"{home}/run", "--tmpdir", f"{home}/tmp",
                      "--network-config-dir", f"{home}/networks", "--cgroup-manager", "cgroupfs", "--runtime", "runc",
                      "--events-backend", "file"]
        self.service: subprocess.Popen[bytes] | None = None

    def own_env(self) -> dict[str, str]:
        """In which the program itself runs: with CONTAINER_HOST, it would be a client."""
        env = {k: v for k, v in os.environ.items() if k not in ("DOCKER_HOST", "CONTAINER_HOST")}
        return env | {"CONTAINERS_CONF": f"{self.home}/containers.conf"}

    def env(self) -> dict[str, str]:
        """The environment in which the product finds it."""
        return self.own_env() | {"CONTAINER_HOST": self.address}

    def podman(self, *args: str) -> str:
        """Output of the client. Raises RuntimeError with what it said when it fails."""
        return said("chroot", str(self.root), "/usr/bin/podman", "--remote", "--url", self.address, *args,
                    env=self.own_env())

    def beside(self, *args: str) -> str:
        """What the service does not do for a client: in its namespaces, where the containers' own are mounted."""
        assert self.service
        return said("nsenter", f"--mount=/proc/{self.service.pid}/ns/mnt", f"--net={self.host_netns}", *self.local, *args,
                    env=self.own_env())

    def run(self, name: str, *args: str, command: Sequence[str] = ("sleep", "1000000")) -> None:
        self.podman("run", "-d", "--name", name, *args, "bb:latest", *command)

    def remove(self, *names: str) -> None:
        self.podman("rm", "-f", "-t", "0", *names)

    def on_host(self, *argv: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        return in_netns(self.host_netns, *argv, **{"env": self.env()} | kw)


def said(*argv: str, env: dict[str, str]) -> str:
    done = subprocess.run(argv, env=env, text=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.rstrip("\n")


@contextmanager
def private_podman(root: Path) -> Iterator[Podman]:
    """With the containers c1 and c2 (publishes 8080, answers HTTP on 80). Leaves nothing behind."""
    clear_leftovers()
    name = f"dnt{os.getpid()}-podman"
    podman = Podman(name, BASE / f"{name}-engine", root)
    with ExitStack() as stack:
        stack.callback(clear, name)
        podman.home.mkdir(mode=0o755)
        make_network(name)
        start(podman)
        stack.callback(stop, podman)
        with image(podman.home, find_busybox(cache() / "engine")) as tar:
            podman.podman("import", str(tar), "bb:latest")
        podman.run("c1")
        podman.run("c2", "-p", "8080:80", command=("httpd", "-f", "-p", "80"))
        yield podman


def start(podman: Podman) -> None:
    # Podman would raise what a process may have of these, for which not every root has the right.
    rows = json.dumps(["nofile=1024:1024", "nproc=1024:1024"])
    (podman.home / "containers.conf").write_text(f"[containers]\ndefault_ulimits = {rows}\n")
    log = podman.home / "podman.log"
    with log.open("wb") as out:
        podman.service = subprocess.Popen(
            ["nsenter", f"--net={podman.host_netns}", *WITHIN, str(podman.root), *podman.local,
             "system", "service", "--time", "0", podman.address], env=podman.own_env(), stdout=out, stderr=out,
            stdin=subprocess.DEVNULL, start_new_session=True)
    until_it_answers("podman", podman.service, lambda: podman.podman("version"), log)


def stop(podman: Podman) -> None:
    """Containers first: the name server goes with the last of them."""
    with suppress(RuntimeError, subprocess.TimeoutExpired):  # clear() ends them
        podman.remove("--all")
    assert podman.service
    podman.service.terminate()
    podman.service.wait(10)
