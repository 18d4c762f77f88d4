"""The picture and the tables for programs: one object a line. Fields are added, never renamed, within a schema number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from tracer.model.journey import Cause
from tracer.model.picture import Alone, Bridge, Picture, Port, Table, Uplink
from tracer.model.topology import Link, inode

SCHEMA = 1


def write_picture(picture: Picture, stream: TextIO) -> None:
    _write(stream, {
        "type": "topology", "schema": SCHEMA, "source": picture.source or None,
        "facts": [{"name": fact.name, "value": fact.value, "good": fact.good} for fact in picture.facts],
        "uplinks": [_uplink(uplink) for uplink in picture.uplinks],
        "bridges": [_bridge(bridge) for bridge in picture.bridges],
        "alone": [_alone(one) for one in picture.alone],
        "findings": [_finding(found) for found in picture.findings], "unchecked": list(picture.unchecked)})


def write_tables(tables: Sequence[Table], stream: TextIO) -> None:
    for table in tables:
        _write(stream, {
            "type": "table", "schema": SCHEMA, "name": table.name, "title": table.title, "meaning": table.meaning,
            "command": table.command, "columns": list(table.columns),
            "rows": [{"cells": list(row.cells), "mark": row.mark or None, "note": row.note or None} for row in table.rows],
            "notes": list(table.notes)})


def _write(stream: TextIO, row: dict[str, Any]) -> None:
    stream.write(json.dumps(row) + "\n")  # in ASCII: lone surrogates and control characters are escaped


def _link(link: Link) -> dict[str, Any]:
    return {"ifindex": link.ifindex, "name": link.name, "kind": link.kind, "mac": link.mac, "mtu": link.mtu, "up": link.up,
            "carrier": link.carrier, "operstate": link.operstate, "addresses": [str(i) for i in link.addresses]}


def _uplink(uplink: Uplink) -> dict[str, Any]:
    return {**_link(uplink.link), "gateways": [str(one) for one in uplink.gateways],
            "other_end": uplink.guest.node if uplink.guest else None}


def _bridge(bridge: Bridge) -> dict[str, Any]:
    network = bridge.network
    return {**_link(bridge.link), "node": bridge.node, "roles": ["switch", "nic"],
            "network": None if network is None else {
                "id": network.id, "name": network.name, "driver": network.driver, "internal": network.internal,
                "icc": network.icc, "masquerade": network.masquerade, "subnets": [str(one) for one in network.subnets]},
            "ports": [_port(port) for port in bridge.ports], "hidden_ports": bridge.hidden}


def _port(port: Port) -> dict[str, Any]:
    own, guest = port.link.port, port.guest
    return {**_link(port.link), "learned": list(port.learned),
            "state": own.state if own else None, "hairpin": own.hairpin if own else None,
            "isolated": own.isolated if own else None,
            "peer": None if guest is None else {
                "node": guest.node, "netns": inode(guest.key.netns), "ifindex": guest.key.ifindex,
                "device": _link(guest.link) if guest.link else None, "containers": list(guest.containers),
                "published": [{"protocol": one.protocol, "container_port": one.container_port, "host_port": one.host_port,
                               "host_ip": str(one.host_ip) if one.host_ip else None} for one in guest.published]}}


def _alone(one: Alone) -> dict[str, Any]:
    return {"name": one.name, "kind": one.kind, "sentence": one.sentence, "devices": [_link(link) for link in one.links]}


def _finding(found: Cause) -> dict[str, Any]:
    return {"name": found.name, "sentence": found.sentence, "evidence": list(found.evidence), "mend": found.mend}
