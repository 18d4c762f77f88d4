"""The software beside the kernel: what is installed, in which version, and who needs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from tracer.errors import UserError
from tracer.model.health import Part

TRACING = ("ping", "live", "record")
FOLDERS = "/usr/sbin:/sbin"  # where a shell without root's PATH does not look
PYTHON = (("numpy", "python3-numpy", TRACING), ("pyroute2", "python3-pyroute2", TRACING),
          ("scapy", "python3-scapy", ("ping",)))
TOOLS = (("nft", "nftables", "the words of nftables' rules"), ("iptables-save", "iptables", "the words of iptables' rules"))


def read_parts() -> tuple[Part, ...]:
    return (_bcc(), *_modules(), _libpcap(), *_tools())


def _bcc() -> Part:
    from tracer.kernel.compiler import bcc_version

    try:
        return Part("bcc", bcc_version(), "python3-bpfcc", TRACING)
    except UserError as error:
        return Part("bcc", None, "python3-bpfcc", TRACING, why=str(error))


def _modules() -> Iterator[Part]:
    """Python's, not imported: that would take longer than everything else here."""
    for name, package, commands in PYTHON:
        try:
            yield Part(name, version(name) if find_spec(name) else None, package, commands)
        except PackageNotFoundError:  # put there without a package manager
            yield Part(name, "?", package, commands)


def _libpcap() -> Part:
    from tracer.model.pcap import compile_expression

    try:
        compile_expression("")
    except UserError:
        return Part("libpcap", None, "libpcap0.8", ("live", "record"))
    return Part("libpcap", "", "libpcap0.8", ("live", "record"))


def _tools() -> Iterator[Part]:
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), FOLDERS)))
    for name, package, lost in TOOLS:
        yield Part(name, "" if shutil.which(name, path=path) else None, package, ("ping", "live"), lost)
