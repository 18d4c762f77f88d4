"""What events have in common is made once, and forgotten in bounded memory."""

from __future__ import annotations

from tests.unit.recording import load
from tracer.model.forms import KEPT, Forms, made
from tracer.model.layout import ALIKE


def test_a_form_is_what_its_events_have_in_common() -> None:
    forms = Forms()
    for event in load("one_bridge").events:
        key = repr((event[5:22], event.stack, event.tuples)).encode()
        form = forms.get(key) or forms.add(key, event[5:22], event.stack, event.tuples)
        again = made(event[:5], form, event.packet)
        assert again._replace(padding=event.padding, like=None) == event
        assert ALIKE(again) == ALIKE(event)


def test_packets_of_many_lengths_stay_alike() -> None:
    """More forms than are kept, which differ in what means nothing."""
    forms = Forms()
    event = load("one_bridge").events[0]
    likes = set()
    for length in range(2 * KEPT):
        members = event._replace(length=length)[5:22]
        likes.add(forms.add(length.to_bytes(4, "big"), members, event.stack, event.tuples)[1][-1])
        assert len(forms._known) <= KEPT
    assert len(likes) == 1
