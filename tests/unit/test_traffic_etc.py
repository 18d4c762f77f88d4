"""Files of a root that its owner prepared for us are read inside it, in bounded time and size, or not at all."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from tracer.traffic import etc
from tracer.traffic.etc import ResolvConf, in_hosts, read, resolv_conf


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's root; /proc/PID/root needs a container, so that the pattern takes this folder for one."""
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "secret").write_text("the host's")
    monkeypatch.setattr(etc, "_CONTAINER", etc.re.compile(f"({tmp_path}/root)/(.+)"))
    return tmp_path / "root"


def test_a_file_is_read_through_a_symlink_inside_the_root(root: Path) -> None:
    (root / "real").write_text("nameserver 10.0.0.53\n")
    (root / "etc" / "resolv.conf").symlink_to("/real")  # absolute: within the container's root, not within ours
    assert read(f"{root}/etc", "resolv.conf") == "nameserver 10.0.0.53\n"


@pytest.mark.parametrize("target", ["../../secret", "../../../../../../../../etc/hostname", "/proc/self/environ"])
def test_a_symlink_does_not_lead_out_of_the_root(root: Path, target: str) -> None:
    (root / "etc" / "hosts").symlink_to(target)
    assert read(f"{root}/etc", "hosts") is None
    (root / "etc" / "hosts").unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to("../..")
    assert read(f"{root}/etc", "secret") is None


def test_a_fifo_does_not_block_and_a_device_is_not_read(root: Path) -> None:
    os.mkfifo(root / "etc" / "hosts")
    assert read(f"{root}/etc", "hosts") is None
    (root / "etc" / "folder").mkdir()
    assert read(f"{root}/etc", "folder") is None
    assert read("/dev", "zero") is None


def test_of_an_endless_file_a_piece_is_read(root: Path) -> None:
    with open(root / "etc" / "hosts", "wb") as file:
        file.truncate(1 << 40)
    text = read(f"{root}/etc", "hosts")
    assert text is not None
    assert len(text) == 1 << 20


def test_hosts_gives_the_version_that_is_wanted_first() -> None:
    text = "127.0.0.1 localhost\n::1\tlocalhost\nnonsense web\n10.0.0.7 Web.example web # 10.0.0.8 db\n"
    assert in_hosts(text, "localhost", (4, 6)) == ip_address("127.0.0.1")
    assert in_hosts(text, "localhost", (6,)) == ip_address("::1")
    assert in_hosts(text, "WEB.", (4, 6)) == ip_address("10.0.0.7")
    assert in_hosts(text, "web", (6,)) is None
    assert in_hosts(text, "db", (4, 6)) is None


def test_resolv_conf_as_the_manual_has_it() -> None:
    text = ("# nameserver 9.9.9.9\nnameserver 127.0.0.11\nnameserver fe80::1%eth0\nnameserver junk\n"
            "domain old.example\nsearch a.example b.example.\noptions edns0 ndots:3 timeout:1\n")
    assert resolv_conf(text) == ResolvConf((ip_address("127.0.0.11"), ip_address("fe80::1%eth0")),
                                           ("a.example", "b.example"), 3)
    assert resolv_conf("") == ResolvConf((ip_address("127.0.0.1"),))
    assert resolv_conf("options ndots:99").ndots == 15
    assert len(resolv_conf("".join(f"nameserver 10.0.0.{n}\n" for n in range(9))).servers) == 3
