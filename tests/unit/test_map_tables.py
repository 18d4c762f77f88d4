"""Routes with their arithmetic, links side by side, MACs and neighbours with whose they are."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.unit.topo import changed, network, port_of, relinked, source, space
from tracer.errors import UserError
from tracer.map.picture import ALL, Choice
from tracer.map.routes import arithmetic, routes
from tracer.map.tables import bridges, links, neighbors
from tracer.model.topology import FdbEntry, Neighbor, PolicyRule, Route

WHOLE = network().topology


def test_the_row_that_an_address_takes_with_the_arithmetic() -> None:
    (table,) = routes(WHOLE, space(WHOLE, "c1"), ip_address("172.17.0.3"))
    assert [(row.mark, row.cells[1:5], row.note) for row in table.rows] == [
        (">", ("172.17.0.0", "0.0.0.0", "255.255.0.0", "U"), "172.17.0.3 & 255.255.0.0 = 172.17.0.0: fits"),
        ("", ("0.0.0.0", "172.17.0.1", "0.0.0.0", "UG"), "172.17.0.3 & 0.0.0.0 = 0.0.0.0: fits, but another row wins")]
    assert table.notes[0] == "It goes out by eth0 directly: the frame gets the MAC of 172.17.0.3 itself."


@pytest.mark.parametrize(("goal", "verdict"), [
    ("203.0.113.1", "It goes to the gateway 172.17.0.1 by eth0: the frame gets the gateway's MAC, the packet keeps "
     "203.0.113.1."),
    ("172.17.0.2", "172.17.0.2 is c1's own address: packets for it are delivered there."),
    ("fd00:17::9", "It goes out by eth0 directly: the frame gets the MAC of fd00:17::9 itself."),
])
def test_what_becomes_of_it(goal: str, verdict: str) -> None:
    assert routes(WHOLE, space(WHOLE, "c1"), ip_address(goal))[0].notes[0] == verdict


def test_no_row_fits_and_rows_that_refuse() -> None:
    assert routes(WHOLE, space(WHOLE, "c6"), ip_address("1.2.3.4"))[0].notes == ("No row fits: c6 has no route to 1.2.3.4.",)
    host = WHOLE.namespaces[WHOLE.host]
    row = Route(ip_network("10.9.0.0/16"), None, None, 254, "blackhole", None, 0)
    topology = changed("host", routes=(*host.routes, row), rules=(PolicyRule(4, 100, 77, "from 10.0.0.0/8 lookup 77"),))
    (table,) = routes(topology, None, ip_address("10.9.1.1"))
    assert table.notes == ("The row refuses it: blackhole.", "`ip rule` asks another table first: from 10.0.0.0/8 lookup 77")
    assert next(row for row in table.rows if row.mark).cells[4] == "!"


def test_arithmetic_in_ipv6() -> None:
    row = Route(ip_network("fd00:18::/64"), None, 1, 254, "unicast", None, 0)
    assert arithmetic(ip_address("fd00:17::3"), row) == "fd00:17::3 & /64 = fd00:17::: not fd00:18::"


def test_routes_of_names_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r'"nix" is no IP address'):
        source().tables("routes", ALL, "nix", None, None)
    with pytest.raises(UserError, match=r"c9 has no network now \(exited\): start it with `docker start c9`"):
        source().tables("routes", ALL, None, "c9", None)


def test_links_side_by_side() -> None:
    rows = {row.cells[2]: row for row in links(WHOLE)[0].rows}
    port = port_of("c1")
    assert rows["c1"].cells[0].startswith(f"{port.ifindex}: {port.name}@")
    assert rows["c1"].cells[3].endswith(f"eth0@{port.ifindex}")
    assert rows["c3 + c4"].mark == ""
    smaller = {row.cells[2]: row for row in links(relinked("host", port.name, mtu=1400))[0].rows}["c1"]
    assert (smaller.mark, smaller.cells[4]) == ("!", "1400, inside 1500")
    assert [row.cells[2] for row in links(WHOLE, Choice("bridge"))[0].rows] == ["c1", "c2"]
    assert [row.cells[2] for row in links(WHOLE, Choice(container="c7"))[0].rows] == ["c7"]


def test_which_port_a_mac_was_learned_on() -> None:
    host, port = WHOLE.namespaces[WHOLE.host], port_of("c1")
    entry = FdbEntry("02:42:ac:11:00:02", port.master or 0, port.ifindex, False, 12.4)
    assert entry == replace(entry, age=13.0)
    fdb = bridges(changed("host", fdb=(entry, *(e for e in host.fdb if e.local))), Choice("bridge"))[2]
    assert fdb.rows[0].cells == ("docker0", "02:42:ac:11:00:02", port.name, "12 s", "eth0 of c1")
    assert all(row.cells[3] == "local" for row in fdb.rows[1:])


def test_neighbours_that_are_wrong_or_failed_are_marked() -> None:
    eth0 = space(WHOLE, "c1").by_name("eth0")
    assert eth0
    told = [("172.17.0.3", "02:42:ac:11:00:03", "STALE"), ("172.17.0.9", None, "FAILED"),
            ("172.17.0.1", "02:42:ac:11:00:63", "PERMANENT")]
    topology = changed("c1", neighbors=tuple(Neighbor(ip_address(a), eth0.ifindex, mac, state) for a, mac, state in told))
    (table,) = neighbors(topology, Choice(container="c1"))
    assert [(row.mark, row.cells[1:5]) for row in table.rows] == [
        ("!", ("172.17.0.1", "host", "02:42:ac:11:00:63", "PERMANENT")), ("", ("172.17.0.3", "c2", told[0][1], "STALE")),
        ("!", ("172.17.0.9", "–", "–", "FAILED"))]
    assert "its owner has another MAC" in table.rows[0].note
    assert [note.split(":")[0] for note in table.notes] == ["PERMANENT", "STALE", "FAILED"]
