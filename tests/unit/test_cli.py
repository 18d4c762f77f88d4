"""The command line in process: what every user can meet without root, a kernel or Docker."""

from __future__ import annotations

import sys

import pytest

from tracer.cli.main import main
from tracer.errors import ExitStatus, UserError


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["ping", "--help"]) == 0
    assert "sudo dnettrace ping c1 c2" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "Commands:"),
    (["ping"], "Missing argument 'SOURCE'"),
    (["ping", "c1"], "Missing argument 'DESTINATION'"),
    (["ping", "c1", "c2", "-c", "0"], "0 is not in the range x>=1"),
    (["ping", "c1", "c2", "-s", "-1"], "-1 is not in the range"),
    (["ping", "c1", "c2", "--ttl", "256"], "256 is not in the range"),
    (["ping", "c1", "c2", "-i", "soon"], "'soon' is not a valid float"),
    (["pong"], "No such command 'pong'"),
])
def test_usage_errors_end_with_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitStatus.ERROR
    assert words in capsys.readouterr().err


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["ping", "c1", "c2"]) == ExitStatus.ERROR
    out, err = capsys.readouterr()
    assert not out
    assert err == ("dnettrace: Tracing needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN): run it with sudo.\n")


def test_without_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracer.kernel import compiler
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(UserError, match=r"binding of BCC is missing: run `sudo ./scripts/setup`"):
        compiler._import_bcc()


def test_with_pypi_s_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    from tracer.kernel import compiler
    monkeypatch.setitem(sys.modules, "bcc", types.ModuleType("bcc"))
    with pytest.raises(UserError, match="which is another project"):
        compiler._import_bcc()


def test_without_btf(monkeypatch: pytest.MonkeyPatch) -> None:
    from unittest.mock import MagicMock

    from tracer.kernel import btf
    library = MagicMock()
    library.btf__load_vmlinux_btf.return_value = None
    monkeypatch.setattr(btf, "_libbpf", lambda: library)
    with pytest.raises(UserError, match=r"This kernel has no BTF \(/sys/kernel/btf/vmlinux\)"):
        btf.Btf()


def test_a_closed_pipe_ends_quietly(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from tracer.cli import main as module

    def broken(*_args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(module.commands, "invoke", broken)
    monkeypatch.setattr("os.dup2", lambda *_fds: None)
    assert main(["lab", "status"]) == ExitStatus.OK
    assert capfd.readouterr().err == ""
