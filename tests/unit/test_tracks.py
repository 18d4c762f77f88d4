"""Which packet is it: reuse, copies, losses and stacks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.recording import load
from tracer.journey.stack import own_frames
from tracer.journey.tracks import Tracks, device_name
from tracer.model.layout import Place
from tracer.model.probes import Batch
from tracer.model.topology import LinkKey


def test_a_renamed_device_leaves_its_old_tail_behind_the_nul() -> None:
    event = load("one_bridge").events[0]._replace(name=b"eth0\0\0\0\x0065e\0\0\0\0\0")
    assert device_name(event) == "eth0"


def test_losses_count_for_the_packets_that_were_under_way() -> None:
    recording = load("one_bridge")
    tracks = Tracks(recording.topology)
    tracks.feed(Batch(recording.events[:5], 0))
    under_way = tracks.live
    tracks.feed(Batch([], 7))
    assert under_way and all(track.lost == 7 for track in under_way)
    tracks.feed(Batch(recording.events[5:], 0))
    tracks.feed(Batch([], 2))
    assert tracks.lost == 9
    assert all(track.lost == 0 for track in tracks.live if track not in under_way), "they had ended before"


def test_an_end_closes_a_track() -> None:
    recording = load("one_bridge")
    tracks = Tracks(recording.topology)
    tracks.feed(Batch(recording.events, 0))
    assert all(track.ended == (track.events[-1].place in (Place.DROP, Place.CONSUME)) for track in tracks.live)


def test_a_lookup_waits_for_its_packet_while_others_come_in_between() -> None:
    recording = load("one_bridge")
    lookup, first, *rest = recording.events
    assert (lookup.place, first.place) == (Place.ROUTE, Place.HOOK)
    other = first._replace(journey=1, caller=1, time=first.time - 1)
    tracks = Tracks(recording.topology)
    tracks.feed(Batch([lookup, other, first, *rest], 0))
    assert [track.routes[:1] for track in tracks.live[:2]] == [[], [lookup]]


def test_the_bridge_learns_from_frames_that_were_seen_before() -> None:
    recording = load("one_bridge")
    host = replace(recording.topology.namespaces[recording.topology.host], fdb=())
    tracks = Tracks(replace(recording.topology, namespaces={**recording.topology.namespaces, host.netns: host}))
    bridge = host.by_name("docker0")
    assert bridge
    tracks.feed(Batch(recording.events, 0))
    begun, ended = recording.events[0].time, recording.events[-1].time
    assert tracks.port_of(host.netns, bridge.ifindex, "02:42:ac:11:00:03", begun) is None
    port = tracks.port_of(host.netns, bridge.ifindex, "02:42:ac:11:00:03", ended)
    assert port and port[1] == "learned" and recording.steady(host.links[port[0]].name) == "veth-c2"


@pytest.mark.parametrize(("stack", "own"), [
    # a frame that docker0 passes up to the host: the receiving functions around the tracepoint are not its way
    (("bpf_prog_1_x", "bpf_trace_run1", "__netif_receive_skb_core.constprop.0", "__netif_receive_skb_one_core",
      "netif_receive_skb", "br_handle_frame_finish", "br_handle_frame", "__netif_receive_skb_core.constprop.0",
      "process_backlog", "raw_sendmsg"), ("br_handle_frame_finish", "br_handle_frame")),
    # an answer that is built inside the delivery of the question, which came over the bridge
    (("bpf_prog_1_x", "bpf_trace_run1", "__dev_queue_xmit", "arp_xmit", "arp_process", "__netif_receive_skb_one_core",
      "netif_receive_skb", "br_handle_frame_finish"), ("__dev_queue_xmit", "arp_xmit", "arp_process")),
    # what waited for a MAC, let go within the delivery of the answer that brought it
    (("bpf_prog_1_x", "bpf_trace_run4", "sk_skb_reason_drop", "br_handle_frame_finish", "br_nf_dev_xmit", "br_dev_xmit",
      "dev_hard_start_xmit", "__dev_queue_xmit", "__neigh_update", "arp_process", "__netif_receive_skb_one_core"),
     ("sk_skb_reason_drop", "br_handle_frame_finish", "br_nf_dev_xmit", "br_dev_xmit", "dev_hard_start_xmit",
      "__dev_queue_xmit")),
    (("bpf_prog_1_x", "bpf_trace_run1", "__dev_queue_xmit", "br_nf_forward_ip.part.0"),
     ("__dev_queue_xmit", "br_nf_forward_ip")),
    ((), ()),
])
def test_own_frames_end_where_the_packet_was_received(stack: tuple[str, ...], own: tuple[str, ...]) -> None:
    assert own_frames(stack) == own


def test_a_veth_pair_is_known_from_the_packets_that_cross_it() -> None:
    """Until it is read; and where an earlier step of its making was read."""
    recording = load("one_bridge")
    known, c1 = recording.topology, next(n for n, name in recording.topology.names.items() if name == "c1")
    host = known.namespaces[known.host]
    end = next(link for link in host.links.values() if link.peer and link.peer.netns == c1)
    for read in (None, LinkKey(known.host, 99)):
        space = replace(host, links={**host.links, end.ifindex: replace(end, peer=read)})
        tracks = Tracks(replace(known, namespaces={known.host: space}))
        tracks.feed(Batch(recording.events, 1))
        assert tracks.peer_of(known.host, end.ifindex) == (("host", "if99") if read else None), "hops between may be lost"
        tracks = Tracks(replace(known, namespaces={known.host: space}))
        tracks.feed(Batch(recording.events, 0))
        assert tracks.peer_of(known.host, end.ifindex) == ("c1", "eth0")


def test_devices_are_met_for_the_first_time_once() -> None:
    recording = load("one_bridge")
    tracks = Tracks(recording.topology)
    tracks.feed(Batch(recording.events, 0))
    assert tracks.fresh() == {LinkKey(e.netns, e.ifindex) for e in recording.events if e.netns and e.ifindex
                              and e.place != Place.ROUTE}
    tracks.feed(Batch(recording.events, 0))
    assert tracks.fresh() == set()
