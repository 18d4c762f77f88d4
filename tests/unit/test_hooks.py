"""Where netfilter links go."""

from __future__ import annotations

from dataclasses import replace

from tracer.kernel.hooks import FIRST, LAST, hook_points, whole_hooks
from tracer.model.layout import HOOK_BEGINS, HOOK_ENDS, HOOK_TABLE, SLOTS
from tracer.model.topology import BaseChain, Namespace


def chain(hook: str, priority: int, table: str = "filter", family: str = "ip") -> BaseChain:
    return BaseChain(family, table, hook.upper(), hook, priority)


def points(*chains: BaseChain, version: int = 4) -> dict[str, list[tuple[int, list[str], bool]]]:
    found: dict[str, list[tuple[int, list[str], bool]]] = {}
    for point in hook_points(Namespace(1, "host", "", chains=chains), (version,)):
        found.setdefault(point.hook, []).append((point.priority, [t.table for t in point.tables], point.conntrack))
    return found


def test_one_link_a_hook_where_there_are_no_tables() -> None:
    assert points() == {hook: [(FIRST, [], False)]
                        for hook in ("prerouting", "input", "forward", "output", "postrouting")}


def test_one_more_behind_each_priority_and_behind_conntrack() -> None:
    found = points(chain("prerouting", -300, "raw"), chain("prerouting", -100, "nat"), chain("forward", 0),
                   chain("forward", 0, "own", "inet"), chain("forward", 10, "late"))
    assert found["prerouting"] == [(FIRST, [], False), (-299, ["raw"], False), (-199, [], True), (-99, ["nat"], False)]
    assert found["forward"] == [(FIRST, [], False), (1, ["filter", "own"], False), (11, ["late"], False)]


def test_neighbouring_priorities_share_a_link_since_a_bpf_hook_wants_one_for_itself() -> None:
    found = points(chain("forward", 0), chain("forward", 1, "next"), chain("forward", 3, "third"))
    assert found["forward"] == [(FIRST, [], False), (2, ["filter", "next"], False), (4, ["third"], False)]


def test_a_hook_as_a_whole_has_all_of_its_tables_behind_it() -> None:
    chains = (chain("prerouting", -100, "nat"), chain("prerouting", -300, "raw"), chain("input", 0, "six", "ip6"))
    found = whole_hooks(Namespace(1, "host", "", chains=chains), (4,))
    assert [(p.hook, p.slot, p.priority, [t.table for t in p.tables or ()], p.conntrack) for p in found[:4]] == [
        ("prerouting", HOOK_BEGINS, FIRST, [], False), ("prerouting", HOOK_ENDS, LAST, ["raw", "nat"], True),
        ("input", HOOK_BEGINS, FIRST, [], False), ("input", HOOK_ENDS, LAST, [], False)]
    assert [p.tables for p in whole_hooks(Namespace(1, "host", "", chains=None), (4,))] == [(), None] * 5


def test_a_hook_as_a_whole_tells_tables_of_iptables_legacy_apart() -> None:
    """But for nat's, which only the first packets of a connection pass, and where another table is at the same place."""
    chains = [replace(chain("prerouting", priority, table, family), legacy=True)
              for table, priority in (("raw", -300), ("mangle", -150), ("nat", -100)) for family in ("ip", "ip6")]
    chains += [replace(chain("forward", priority, table), legacy=True)
               for table, priority in (("mangle", -150), ("filter", 0), ("security", 50))]
    chains.append(chain("forward", 0, "nftables"))

    def found(legacy: tuple[int, ...], hook: str) -> list[tuple[int, list[str], bool]]:
        return [(p.slot, [t.table for t in p.tables or ()], p.conntrack)
                for p in whole_hooks(Namespace(1, "host", "", chains=tuple(chains)), (4,), legacy) if p.hook == hook]

    assert found((4, 6), "prerouting") == [
        (HOOK_BEGINS, [], False), (HOOK_TABLE, ["raw"], False), (HOOK_TABLE + 1, ["mangle"], True),
        (HOOK_ENDS, ["nat"], False)]
    assert found((6,), "prerouting") == [(HOOK_BEGINS, [], False), (HOOK_ENDS, ["raw", "mangle", "nat"], True)]
    assert found((4,), "forward") == [
        (HOOK_BEGINS, [], False), (HOOK_TABLE + 1, ["mangle"], False),
        (HOOK_TABLE + 3, ["filter", "nftables", "security"], False), (HOOK_ENDS, [], False)]


def test_a_table_of_a_version_that_is_not_told_apart_is_told_with_others() -> None:
    chains = tuple(replace(chain("forward", 0, "filter", family), legacy=True) for family in ("ip", "ip6"))
    found = [p for p in whole_hooks(Namespace(1, "host", "", chains=chains), (4, 6), (4,)) if p.hook == "forward"]
    assert [(p.slot, len(p.tables or ())) for p in found] == [(HOOK_BEGINS, 0), (HOOK_ENDS, 2)]


def test_only_chains_of_the_packets_family() -> None:
    chains = chain("input", 0), chain("input", 0, "six", "ip6"), chain("input", 5, "both", "inet")
    assert points(*chains)["input"] == [(FIRST, [], False), (1, ["filter"], False), (6, ["both"], False)]
    assert points(*chains, version=6)["input"] == [(FIRST, [], False), (1, ["six"], False), (6, ["both"], False)]


def test_more_tables_than_programs_share_the_last_link() -> None:
    found = points(*(chain("input", priority, f"t{priority}") for priority in range(0, 400, 10)))["input"]
    assert len(found) == SLOTS
    assert found[-1] == (391, [f"t{priority}" for priority in range(100, 400, 10)], False)
