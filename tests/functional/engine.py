"""A real Docker engine for the tests, with its network in a namespace of its own.

    c1, c2 -- docker0 172.17.0.1 -- [host: eth0 198.51.100.2] -- [wan: eth0 198.51.100.1, lo 203.0.113.1]
              docker0 fd00:17::1          eth0 2001:db8::2           eth0 2001:db8::1, lo 2001:db8:1::1

Only network namespaces are separate; nothing of the machine's own engine or network is touched. Every name and the
data folder carry the pid of the process that started the engine, so that the next one can clear up after a `kill -9`.

Where DNETTRACE_ENGINE_ROOT names the root of another distribution, that one's engine runs (scripts/engines).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

BASE = Path("/var/tmp")
NETNS = Path("/run/netns")
OURS = re.compile(r"dnt(\d+)-[a-z0-9-]+")  # labs of tests are named like this, too
TOOLS = ("sh", "sleep", "ping", "wget", "nc", "ip", "route", "arp", "httpd", "cat", "ls", "kill", "true", "false")
KEY = "deprecated-key-path"  # a setting of the daemon
# Engines before 27 take ip6tables for an experiment; later ones have it on.
IPV6 = {"ipv6": True, "fixed-cidr-v6": "fd00:17::/64", "ip6tables": True, "experimental": True}
CLIENT = """#!/bin/sh
exec chroot {} /usr/bin/docker "$@"
"""
# Not chroot: `docker exec` enters a container's mount namespace by that namespace's own root.
WITHIN = ("unshare", "--mount", "sh", "-c", 'cd "$0" && pivot_root . mnt && umount -l /mnt && exec "$@"')
PATIENCE = 5 if "DNETTRACE_VM" in os.environ else 1  # of scripts/kernels: so much slower is an emulated machine
START_SECONDS = 60 * PATIENCE
STOP_SECONDS = 20 * PATIENCE


class EngineMissing(Exception):
    """No engine is installed and none was unpacked."""


def cache() -> Path:
    """Where `scripts/test` unpacks an engine to."""
    own = os.environ.get("DNETTRACE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/root"), ".cache")
    return Path(own) if own else Path(base, "dnettrace")


class Engine:
    """One running engine. Made by `private_engine`."""

    def __init__(self, name: str, home: Path, unpacked: Path, root: Path | None = None) -> None:
        """Its programs are those of `root`, a whole system with `home` at the same path; else `unpacked` or installed."""
        self.name = name
        self.home = home
        self.unpacked = unpacked
        self.root = root
        self.docker_host = f"unix://{home}/docker.sock"
        self.host_netns = str(NETNS / f"{name}-host")
        self.wan_netns = str(NETNS / f"{name}-wan")

    def env(self) -> dict[str, str]:
        """The environment in which `docker`, and the product, find this engine."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        folders = [str(self.unpacked / "usr" / sub) for sub in ("bin", "sbin")] if self.unpacked.is_dir() else []
        if self.root:
            folders = [str(self.home / "bin")]
        path = [env.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        return env | {"DOCKER_HOST": self.docker_host, "DOCKER_CONFIG": str(self.home / "client"),
                      "PATH": ":".join(filter(None, folders + path))}

    def docker(self, *args: str, timeout: float = 60) -> str:
        """Output of the client, without the final newline. Raises RuntimeError with what it said when it fails."""
        done = subprocess.run(["docker", *args], env=self.env(), text=True, capture_output=True, timeout=timeout * PATIENCE,
                              stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.rstrip("\n")

    def run(self, name: str, *docker_args: str, command: Sequence[str] = ("sleep", "1000000")) -> None:
        """Starts a container of the image `bb` (a static busybox)."""
        self.docker("run", "-d", "--name", name, *docker_args, "bb", *command)

    def remove(self, *names: str) -> None:
        self.docker("rm", "-f", "-v", *names)

    def pid(self, name: str) -> int:
        """Pid of the container's first process; 0 when it is not running."""
        return int(self.docker("inspect", "-f", "{{.State.Pid}}", name))

    def address(self, name: str, version: int = 4, network: str = "bridge") -> str:
        """Engines before 28 make IPv6 addresses of the MAC, later ones count."""
        return self.end(name, {4: "IPAddress", 6: "GlobalIPv6Address"}[version], network)

    def mac(self, name: str, network: str = "bridge") -> str:
        return self.end(name, "MacAddress", network)

    def end(self, name: str, word: str, network: str) -> str:
        """What `docker inspect` tells of a container on a network."""
        return self.docker("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{network}").{word}}}}}', name)

    @property
    def guards(self) -> bool:
        """Does it let packets to a container in by the container's own bridge only? In raw/PREROUTING, from 28 on."""
        return "! -i docker0 -j DROP" in self.on_host("iptables-save", "-t", "raw").stdout

    def on_host(self, *argv: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        """Runs a program in the engine's network namespace, which is what its containers call the host."""
        return in_netns(self.host_netns, *argv, **{"env": self.env()} | kw)

    def on_wan(self, *argv: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        return in_netns(self.wan_netns, *argv, **{"env": self.env()} | kw)


def in_netns(netns: str, *argv: str, **kw: Any) -> subprocess.CompletedProcess[str]:
    # Not `ip netns exec`: that mounts a new /sys, which hides the cgroups that an engine needs.
    defaults: dict[str, Any] = {"text": True, "capture_output": True, "timeout": 60 * PATIENCE, "stdin": subprocess.DEVNULL}
    return subprocess.run(["nsenter", f"--net={netns}", *argv], **defaults | kw)


@contextmanager
def private_engine(tag: str = "", **settings: Any) -> Iterator[Engine]:
    """An engine with the containers c1 and c2 (publishes 8080, answers HTTP on 80). Leaves nothing behind.

    `tag` tells a second engine of the same process from the first, `settings` are added to its daemon.json.
    """
    unpacked = cache() / "engine"
    busybox = find_busybox(unpacked)
    clear_leftovers()
    name = f"dnt{os.getpid()}" + (f"-{tag}" if tag else "")
    root = os.environ.get("DNETTRACE_ENGINE_ROOT")
    engine = Engine(name, BASE / f"{name}-engine", unpacked, Path(root) if root else None)
    if not daemon_program(engine):
        raise EngineMissing("no dockerd on PATH and none unpacked in the cache; scripts/test unpacks one on Debian "
                            "and Ubuntu, elsewhere install Docker (its service need not run)")
    with ExitStack() as stack:
        stack.callback(clear, name)
        engine.home.mkdir(mode=0o755)
        if engine.root:
            make_client(engine.home, engine.root)
        make_network(name)
        start_daemon(engine, settings)
        make_image(engine, busybox)
        engine.run("c1")
        engine.run("c2", "-p", "8080:80", command=("httpd", "-f", "-p", "80"))
        stack.callback(stop_containers, engine)
        yield engine


def find_busybox(unpacked: Path) -> Path:
    for path in (Path("/bin/busybox"), unpacked / "bin/busybox", unpacked / "usr/bin/busybox"):
        # A dynamic one would need its libraries in the image. The interpreter's path is in its program header.
        if path.exists() and b"/ld-" not in path.read_bytes()[:4096]:
            return path
    raise EngineMissing("no static busybox for the containers' image; scripts/test unpacks one on Debian and Ubuntu, "
                        "elsewhere install busybox-static")


def make_network(name: str) -> None:
    host, wan = f"{name}-host", f"{name}-wan"
    for line in (f"netns add {host}", f"netns add {wan}",
                 f"link add eth0 netns {host} type veth peer name eth0 netns {wan}",
                 f"-n {host} addr add 198.51.100.2/24 dev eth0", f"-n {wan} addr add 198.51.100.1/24 dev eth0",
                 f"-n {wan} addr add 203.0.113.1/32 dev lo",
                 f"-n {host} addr add 2001:db8::2/64 dev eth0 nodad", f"-n {wan} addr add 2001:db8::1/64 dev eth0 nodad",
                 f"-n {wan} addr add 2001:db8:1::1/128 dev lo",
                 f"-n {host} link set lo up", f"-n {host} link set eth0 up",
                 f"-n {wan} link set lo up", f"-n {wan} link set eth0 up",
                 f"-n {host} route add default via 198.51.100.1", f"-n {host} route add default via 2001:db8::1"):
        done = subprocess.run(["ip", *line.split()], text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"ip {line}: {done.stderr.strip()}")


def daemon_program(engine: Engine) -> Path | None:
    if engine.root:
        return engine.root / "usr/sbin/dockerd"
    found = shutil.which("dockerd", path=engine.env()["PATH"])
    return Path(found) if found else None


def make_client(home: Path, root: Path) -> None:
    client = home / "bin/docker"
    client.parent.mkdir()
    client.write_text(CLIENT.format(shlex.quote(str(root))))
    client.chmod(0o755)


def start_daemon(engine: Engine, added: dict[str, Any]) -> None:
    home = engine.home
    # dockerd has a containerd that ends too late write its stacks to the folder for temporary files
    env = engine.env() | ({} if engine.root else {"TMPDIR": str(home)})
    libraries = [str(p) for p in (*engine.unpacked.glob("usr/lib/*-linux-*"), *engine.unpacked.glob("lib/*-linux-*"))]
    if libraries and not engine.root:
        env["LD_LIBRARY_PATH"] = ":".join([*libraries, *filter(None, [env.get("LD_LIBRARY_PATH")])])
    config = home / "daemon.json"  # else the machine's own /etc/docker/daemon.json is read
    program = daemon_program(engine)
    assert program
    # Engines before 25 write a key to /etc/docker unless told another place; later ones refuse a setting they do not know.
    settings = IPV6 | added | ({KEY: f"{home}/key.json"} if KEY.encode() in program.read_bytes() else {})
    config.write_text(json.dumps(settings))
    start = [*WITHIN, str(engine.root), "/usr/sbin/dockerd"] if engine.root else [str(program)]
    command = [*start, f"--config-file={config}", f"--data-root={home}/data", f"--exec-root={home}/exec",
               f"--host={engine.docker_host}", f"--pidfile={home}/dockerd.pid", "--shutdown-timeout=1"]
    log = home / "dockerd.log"
    with log.open("wb") as out:
        # A session of its own: Ctrl-C in the terminal is for the tests, which then end the daemon in good order.
        daemon = subprocess.Popen(["nsenter", f"--net={engine.host_netns}", *command], env=env, stdout=out, stderr=out,
                                  stdin=subprocess.DEVNULL, start_new_session=True)
    until_it_answers("dockerd", daemon, lambda: engine.docker("version"), log)


def until_it_answers(name: str, daemon: subprocess.Popen[bytes], ask: Callable[[], object], log: Path) -> None:
    """RuntimeError with the end of its log where it does not."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask()
            return
        except RuntimeError as error:
            if daemon.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{name} did not start: {error}\n{tail}") from None


def make_image(engine: Engine, busybox: Path) -> None:
    with image(engine.home, busybox) as tar:
        engine.docker("import", str(tar), "bb:latest")


@contextmanager
def image(home: Path, busybox: Path) -> Iterator[Path]:
    """The containers' files, as a tar file in `home`."""
    with tempfile.TemporaryDirectory(dir=home) as folder:
        root = Path(folder, "root")
        (root / "bin").mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        for tool in TOOLS:
            (root / "bin" / tool).symlink_to("busybox")
        tar = Path(folder, "image.tar")
        subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
        yield tar


def stop_containers(engine: Engine) -> None:
    try:
        if ids := engine.docker("ps", "-aq").split():
            engine.remove(*ids)
    except (RuntimeError, subprocess.TimeoutExpired):
        pass  # clear() ends them without the daemon


def clear_leftovers() -> None:
    """Removes what tests of processes that are gone have left."""
    for path in (*BASE.glob("dnt*-engine"), *NETNS.glob("dnt*-*")):
        match = OURS.fullmatch(path.name)
        if match and not Path("/proc", match[1]).exists():
            clear(path.name.rpartition("-")[0])
            delete_namespace(path.name)


def clear(name: str) -> None:
    """Ends everything that the engine of this name started and removes all that it made. May be called again."""
    home = BASE / f"{name}-engine"
    end_processes(home)
    unmount(home)
    for namespace in (f"{name}-host", f"{name}-wan"):
        delete_namespace(namespace)
    shutil.rmtree(home, ignore_errors=True)


def delete_namespace(name: str) -> None:
    if (NETNS / name).exists():
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def end_processes(home: Path) -> None:
    """Containers first (asked by the daemon, a `sleep` takes 10 s to go), the daemon in good order, then the rest."""
    kill(processes(home, b"containerd-shim", own=False))
    try:
        daemon = int((home / "dockerd.pid").read_text())
    except (OSError, ValueError):
        daemon = 0
    if daemon in processes(home):
        os.kill(daemon, signal.SIGTERM)
        wait([daemon], STOP_SECONDS)
    kill(processes(home))


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait(pids, 5)


def wait(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)


def alive(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # a child of ours stays a zombie until somebody waits for it
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def processes(home: Path, program: bytes = b"", own: bool = True) -> list[int]:
    """The engine's processes (its folder is in their command line) and their descendants (the containers' own).

    `program` takes only those whose name begins with it; without `own`, the descendants alone.
    """
    mark = f"{home}/".encode()
    programs = (b"dockerd", b"containerd", b"docker-proxy", b"runc", b"nsenter", b"unshare", b"podman", b"conmon")
    children: dict[int, list[int]] = {}
    named: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            argv = (entry / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        pid = int(entry.name)
        children.setdefault(parent, []).append(pid)
        name = argv.split(b"\0", 1)[0].rpartition(b"/")[2]
        if mark in argv and name.startswith(programs) and name.startswith(program):
            named.append(pid)
    found: dict[int, None] = {}
    queue = named.copy() if own else [child for pid in named for child in children.get(pid, [])]
    while queue:
        pid = queue.pop()
        if pid not in found and pid != os.getpid():
            found[pid] = None
            queue += children.get(pid, [])
    return list(found)


def unmount(home: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    detach = 2  # MNT_DETACH
    for point in sorted(mounts(), key=len, reverse=True):
        if point.startswith(f"{home}/"):
            libc.umount2(point.encode(), detach)


def mounts() -> list[str]:
    """Mount points of this mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), line.split()[4]) for line in lines]
