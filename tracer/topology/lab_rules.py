"""The rules that Docker writes, for the lab: what iptables-save shows of Docker 20.10 with two bridge networks.

Docker writes the same for IPv6 where `ip6tables` is on in its settings.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}


def rules(version: int, bridges: dict[str, IPv4Network | IPv6Network], published: IPv4Address | IPv6Address) -> str:
    """Input for iptables-restore (4) or ip6tables-restore (6).

    `bridges`: device -> its network, the newest first as Docker inserts them. `published`: the container on docker0
    whose port 80 is the host's port 8080.
    """
    host = f"{published}/{published.max_prefixlen}"
    target = f"{published}:80" if version == 4 else f"[{published}]:80"
    forward = [f"-A FORWARD {rule}" for bridge in bridges for rule in (
        f"-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-o {bridge} -j DOCKER",
        f"-i {bridge} ! -o {bridge} -j ACCEPT",
        f"-i {bridge} -o {bridge} -j ACCEPT")]
    return "\n".join([
        "*filter",
        ":INPUT ACCEPT [0:0]",
        ":FORWARD DROP [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":DOCKER - [0:0]",
        ":DOCKER-ISOLATION-STAGE-1 - [0:0]",
        ":DOCKER-ISOLATION-STAGE-2 - [0:0]",
        ":DOCKER-USER - [0:0]",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
        *forward,
        f"-A DOCKER -d {host} ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
        *(f"-A DOCKER-ISOLATION-STAGE-1 -i {b} ! -o {b} -j DOCKER-ISOLATION-STAGE-2" for b in bridges),
        "-A DOCKER-ISOLATION-STAGE-1 -j RETURN",
        *(f"-A DOCKER-ISOLATION-STAGE-2 -o {b} -j DROP" for b in bridges),
        "-A DOCKER-ISOLATION-STAGE-2 -j RETURN",
        "-A DOCKER-USER -j RETURN",
        "COMMIT",
        "*nat",
        ":PREROUTING ACCEPT [0:0]",
        ":INPUT ACCEPT [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":POSTROUTING ACCEPT [0:0]",
        ":DOCKER - [0:0]",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        f"-A OUTPUT ! -d {LOOPBACK[version]} -m addrtype --dst-type LOCAL -j DOCKER",
        *(f"-A POSTROUTING -s {network} ! -o {b} -j MASQUERADE" for b, network in bridges.items()),
        f"-A POSTROUTING -s {host} -d {host} -p tcp -m tcp --dport 80 -j MASQUERADE",
        *(f"-A DOCKER -i {b} -j RETURN" for b in bridges),
        f"-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination {target}",
        "COMMIT",
        ""])
