"""Which rules a pair could meet: three answers for each match, and the way through chains, tables and backends."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.topo import network, source
from tracer.errors import UserError
from tracer.map.matching import Packet, answers
from tracer.map.passage import Trip, passage
from tracer.map.picture import ALL
from tracer.map.rules import met_rules
from tracer.model.counters import CountedRule
from tracer.model.picture import Table
from tracer.model.ruleset import Ruleset
from tracer.model.topology import BaseChain
from tracer.topology.ruleset import listed

FORWARDED = Packet("forward", 4, ip_address("172.17.0.2"), ip_address("172.18.0.2"), "docker0", "br-1", "tcp", 80, False)
WHOLE = network().topology


def answer(text: str, packet: Packet = FORWARDED) -> bool | None:
    each = list(answers(text, packet))
    return False if False in each else None if None in each else True


@pytest.mark.parametrize(("text", "expected"), [
    ("-A FORWARD -j DROP", True),
    ("-A FORWARD -i docker0 -o br-1 -j DROP", True),
    ("-A FORWARD -i docker0 ! -o docker0 -j X", True),
    ("-A FORWARD ! -i docker0 -o br-1 -j DROP", False),
    ("-A FORWARD -i docker+ -j DROP", True),
    ("-A FORWARD -i br+ -j DROP", False),
    ("-A DOCKER -d 172.18.0.2/32 ! -i br-1 -o br-1 -p tcp -m tcp --dport 80 -j ACCEPT", True),
    ("-A DOCKER -d 172.18.0.2/32 ! -i br-1 -o br-1 -p tcp -m tcp --dport 81 -j ACCEPT", False),
    ("-A DOCKER -p udp -m udp --dport 80 -j ACCEPT", False),
    ("-A X ! -s 172.17.0.0/16 -j DROP", False),
    ("-A X -s 172.17.0.0/16 -m comment --comment \"-i eth7 -j DROP\" -j ACCEPT", True),
    ("-A FORWARD -o br-1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", None),
    ("-A FORWARD -m set --match-set some dst -j DROP", None),
    ("-A X -p tcp -m tcp --dport 80:90 -j DROP", None),
    ("-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", False),
    ("-A PREROUTING -m addrtype ! --dst-type LOCAL -j X", True),
    ("-A X -j DNAT --to-destination 1.2.3.4:80", True),
    ("accept", True),
    ('ip saddr 172.17.0.2 accept comment "iifname eth7 drop"', True),
    ('iifname "docker0" oifname "br-1" counter packets 0 bytes 0 drop', True),
    ('iifname != "docker0" drop', False),
    ('ip saddr 172.17.0.0/16 ip daddr { 10.0.0.1, 172.18.0.2 } accept', True),
    ("ip daddr 172.18.0.3 tcp dport 80 accept", False),
    ("udp dport 80 accept", False),
    ("tcp dport { 80, 443 } accept", True),
    ("ip6 saddr fd00::1 drop", False),
    ("ct state established,related accept", None),
    ("ip daddr @blocked drop", None),
    ('oifname vmap @filter-forward-in-jumps', None),
    ('meta l4proto tcp drop comment "x"', None),
    ("reject with icmpx admin-prohibited", True),
])
def test_one_rule(text: str, expected: bool | None) -> None:
    assert answer(text) is expected


def test_what_is_not_known_of_the_packet_depends() -> None:
    anything = replace(FORWARDED, src=None, dst=None, goes=None, proto=None, dport=None, local=None)
    for text in ("-A X -o eth0 -j DROP", "-A X -d 1.2.3.4/32 -j DROP", "-A X -p tcp -m tcp --dport 1 -j DROP",
                 "-A X -m addrtype --dst-type LOCAL -j DROP", 'oifname "x" drop', "tcp dport 1 drop"):
        assert answer(text, anything) is None


def rows(path: str, space: str = "the host") -> list[str]:
    tables = source().tables("rules", ALL, None, None, path)
    (table,) = (t for t in tables if f"{path}: {space}," in t.title)
    return [f"{row.cells[0]} {row.cells[1]}: {row.cells[3].strip()}" for row in table.rows]


def test_on_one_bridge() -> None:
    assert rows("c1:c2")[-1] == "forward filter 0: -A FORWARD -i docker0 -o docker0 -j ACCEPT"
    assert not any("br-" in row for row in rows("c1:c2"))


def test_between_two_networks_ends_at_the_rule_that_isolates() -> None:
    web = next(n.device for n in WHOLE.networks if n.name == "web")
    assert rows("c1:c3:80")[-1] == f"forward filter 0: -A DOCKER-ISOLATION-STAGE-2 -o {web} -j DROP"
    tables = source().tables("rules", ALL, None, None, "c1:c3:80")
    assert tables[-1].notes == ("Dropped here, whatever else is true of it: nothing behind is met.",)
    assert len(tables) == 2  # it never gets to c3


def test_out_by_masquerade() -> None:
    assert rows("c1:203.0.113.1:443")[-1] == \
        "postrouting nat 100: -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"


def test_a_published_port_from_outside() -> None:
    met = rows("test-wan:198.51.100.2:8080")
    assert met[1].endswith("-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.3:80")
    assert any("-A DOCKER -d 172.17.0.3/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT" in row for row in met)


def test_from_the_host_and_to_it() -> None:
    assert not any("forward" in row for row in rows("c1:host"))
    assert source().tables("rules", ALL, None, None, "host:c1")[0].title == "host:c1: host, where it starts"


@pytest.mark.parametrize(("path", "words"), [
    ("c1", "is no path"), ("c1:c2:x", "is no path"), ("c1:nix", 'No container or namespace is called "nix"'),
    ("c9:c1", "c9 has no network now"), ("c6:c1", "c6 could send to"), ("c6:1.2.3.4", "c6 has no route to 1.2.3.4"),
    ("c1:c2:99999999/udp/x", "is no path"),
])
def test_paths_that_are_none(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        source().tables("rules", ALL, None, None, path)


# nftables ---------------------------------------------------------------------------------------------------------------

LISTED = """table inet fw { # handle 3
\tmap jumps {
\t\ttype ifname : verdict
\t\telements = { "docker0" : jump from_docker,
\t\t\t     "eth0" : jump from_eth0 }
\t}

\tchain forward { # handle 1
\t\ttype filter hook forward priority filter; policy drop;
\t\tct state vmap { invalid : drop, established : accept } # handle 4
\t\tiifname vmap @jumps # handle 5
\t\tiifname "eth9" accept # handle 6
\t}

\tchain from_docker { # handle 2
\t\tip daddr 172.18.0.2 accept comment "drop it" # handle 7
\t}

\tchain from_eth0 { # handle 3
\t\tdrop # handle 8
\t}
}
"""


def met(last: str = 'iifname "eth9" accept') -> Table:
    from tracer.topology.ruleset import _MAP
    said = LISTED.replace('iifname "eth9" accept', last)
    maps = {("inet", "fw", name): elements for name, elements in _MAP.findall(said)}
    ruleset = Ruleset(WHOLE.host, tuple(listed("inet", "fw", said)), (), maps)
    host = replace(WHOLE.namespaces[WHOLE.host], chains=(BaseChain("inet", "fw", "forward", "forward", 0),))
    topology = replace(WHOLE, namespaces={**WHOLE.namespaces, WHOLE.host: host})
    trip = Trip(source().space("c1"), ip_address("172.18.0.2"))
    return met_rules(passage(topology, trip, "x"), {WHOLE.host: ruleset}, {})[1]


def test_rules_of_nft_with_a_map_of_verdicts() -> None:
    rules = tuple(listed("inet", "fw", LISTED))
    assert CountedRule("inet", "fw", "forward", None, "drop", 0, None, legacy=False) in rules
    assert [(r.chain, r.target) for r in rules if r.rule and "comment" in r.rule] == [("from_docker", "accept")]
    assert [row.cells[3].strip() for row in met().rows] == [
        "forward: ct state vmap { invalid : drop, established : accept }", "forward: iifname vmap @jumps",
        'from_docker: ip daddr 172.18.0.2 accept comment "drop it"', "forward: policy DROP"]
    assert not any("Dropped" in note for note in met().notes)  # a map may let it pass


def test_a_drop_behind_a_rule_that_may_accept_is_not_sure() -> None:
    assert met("drop").rows[-1].cells[3] == "forward: drop"
    assert not any("Dropped" in note for note in met("drop").notes)
