"""Classic BPF to C: a filter expression as part of the BPF programs, so that what does not match costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.errors import UserError
from tracer.model import classic
from tracer.model.classic import Instruction, Program

WINDOW_BYTES = 64  # bpf/expression.h
BYTES_STRUCT = "new_utsname"  # its BTF id is BYTES_ID there: it begins with 65 characters, on every kernel
VLAN_TYPES = {0x8100, 0x88A8, 0x9100}
SPECIAL = 0xFFE00000  # SKF_LL_OFF and up: no offset in the frame, include/uapi/linux/filter.h
PACKET_TYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
ARITHMETIC = {classic.ADD: "+", classic.SUB: "-", classic.MUL: "*", classic.DIV: "/", classic.OR: "|", classic.AND: "&",
              classic.LSH: "<<", classic.RSH: ">>", classic.MOD: "%", classic.XOR: "^"}
COMPARISONS = {classic.JEQ: "==", classic.JGT: ">", classic.JGE: ">=", classic.JSET: "&"}
TYPES = {2: "be16(*(u16 *)&{})", 4: "__builtin_bswap32(*(u32 *)&{})"}

# What is known before an instruction, on whatever way it was reached: (window that was looked at, 0), or k for `transport`,
# which begins behind the header at the offset k; and ("x", k) where X is the length of that header.
Known = frozenset[tuple[str, int]]


def filter_source(program: Program, name: str = "filter_expression") -> str:
    """C for `static bool NAME(struct sk_buff *skb, const u8 *l3, u16 protocol)`: does the packet match? It includes nothing,
    and stands behind bpf/read.h and bpf/expression.h. `protocol` is skb->protocol, `l3` where the network header is.

    Loads of the EtherType cost nothing, loads behind it a compare with the packet's end, and, with BYTES_ID, no helper.
    `len` of what is still to be cut into segments is that of the whole; payload that lies in pages is beyond the end.
    UserError for an expression about what a packet on its way has not, its direction."""
    return "\n".join(_Translation(program).text(name)) + "\n"


class _Translation:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._lines: list[str] = []
        # an expression that asks for tags sees them, wherever the kernel keeps them
        self._tags = any(i.code == classic.JMP | classic.JEQ and i.k in VLAN_TYPES for i in program)
        self._body = 18 if self._tags else 14  # from here on offsets are the network header's
        self._known: list[Known | None] = [None] * len(program)  # None: not reached
        self._size = {"ethernet": 12, "tag": 4, "network": 4, "transport": 4, "other": 4}
        self._transport: dict[int, tuple[int, int]] = {}  # k of the header -> first and last offset of its window
        self._measure()

    def text(self, name: str) -> Iterator[str]:
        targets = {target for at, i in enumerate(self._program) if i.code & 7 == classic.JMP for target in _targets(at, i)}
        self._known = [frozenset() if at == 0 else None for at in range(len(self._program))]
        for at, instruction in enumerate(self._program):
            known = self._known[at]
            if known is None:
                continue
            if at in targets:
                self._lines.append(f"l{at}:;")
            self._pass_on(at, instruction, self._emit(at, instruction, known))
        used = sorted({i.k for i in self._program if i.code & 7 in (classic.ST, classic.STX)})
        yield f"static __always_inline bool {name}(struct sk_buff *skb, const u8 *l3, u16 protocol) {{"
        yield "  const u8 *frame = l3;"
        yield f"  u32 {', '.join(f'{v} = 0' for v in ('a', 'x', 'end', 'at', 'tci', 'inner', *(f'm{k}' for k in used)))};"
        yield from (f"  WINDOW({window}, {size});" for window, size in self._size.items()
                    if any(f"LOOK({window}," in line for line in self._lines))
        if self._tags:
            yield "  const bool tagged = has_tag(skb);"
            yield "  const u16 type = tagged ? LOAD(skb, vlan_proto) : protocol;"
        yield from (f"  {line}" if not line.endswith(":;") else line for line in self._lines)
        yield "}"

    def _measure(self) -> None:
        """Which loads go together in one window, and how long it is."""
        self._known[0] = frozenset()
        for at, instruction in enumerate(self._program):
            known = self._known[at]
            if known is None:
                continue
            size = classic.SIZES.get(instruction.code & 0x18, 1)
            header = _header(known)
            if _is_load(instruction, classic.IND) and header is not None and instruction.k >= self._body:
                first, last = self._transport.get(header, (instruction.k, 0))
                # begin where words are aligned
                first = min(first, instruction.k - (instruction.k - self._body) % 4)
                last = max(last, instruction.k + size)
                if last - first <= WINDOW_BYTES:
                    self._transport[header] = first, last
                    self._size["transport"] = max(self._size["transport"], last - first)
            end = instruction.k + size - self._body
            if (_is_load(instruction, classic.ABS) or _is_load(instruction, classic.MSH)) and end <= WINDOW_BYTES:
                self._size["network"] = max(self._size["network"], end)
            self._pass_on(at, instruction, known)

    def _pass_on(self, at: int, instruction: Instruction, known: Known) -> None:
        if instruction.code & 7 == classic.RET:
            return
        if instruction.code & 7 == classic.LDX or instruction.code == classic.MISC:  # X is another now
            known = frozenset(fact for fact in known if fact[0] != "x")
        if _is_load(instruction, classic.MSH):
            known |= {("x", instruction.k)}
        for target in _targets(at, instruction):
            before = self._known[target]
            self._known[target] = known if before is None else before & known

    def _emit(self, at: int, instruction: Instruction, known: Known) -> Known:
        code, k = instruction.code, instruction.k
        kind, write = code & 7, self._lines.append
        operand = "x" if code & classic.BY_X else f"{k:#x}"
        if kind in (classic.LD, classic.LDX):
            return self._emit_load(instruction, known)
        if kind in (classic.ST, classic.STX):
            write(f"m{k} = {'a' if kind == classic.ST else 'x'};")
        elif kind == classic.ALU:
            self._emit_arithmetic(code & 0xF0, operand)
        elif kind == classic.JMP:
            self._emit_jump(at, instruction, operand)
        elif kind == classic.RET:
            write("return a != 0;" if code & 0x18 == classic.RET_A else f"return {'true' if k else 'false'};")
        else:
            write("a = x;" if code & 0xF8 == classic.TXA else "x = a;")
        return known

    def _emit_arithmetic(self, operation: int, operand: str) -> None:
        if operation == classic.NEG:
            self._lines.append("a = -a;")
            return
        if operation in (classic.DIV, classic.MOD) and operand == "x":
            self._lines.append("if (!x) return false;")
        if operation in (classic.LSH, classic.RSH):
            operand = f"({operand} & 31)"
        self._lines.append(f"a {ARITHMETIC[operation]}= {operand};")

    def _emit_jump(self, at: int, instruction: Instruction, operand: str) -> None:
        if instruction.code & 0xF0 == classic.JA:
            self._lines.append(f"goto l{at + 1 + instruction.k};")
            return
        condition = f"a {COMPARISONS[instruction.code & 0xF0]} {operand}"
        self._lines.append(f"if ({condition}) goto l{at + 1 + instruction.jt}; else goto l{at + 1 + instruction.jf};")

    def _emit_load(self, instruction: Instruction, known: Known) -> Known:
        code, k = instruction.code, instruction.k
        size, mode = classic.SIZES[code & 0x18], code & 0xE0
        if mode == classic.IMM:
            value = f"{k:#x}"
        elif mode == classic.MEM:
            value = f"m{k}"
        elif mode == classic.LEN:
            known = self._look("frame", known)
            value = "get_length(skb, frame)"
        elif mode == classic.IND:
            known, value = self._indirect(k, size, known)
        elif k >= SPECIAL:
            raise UserError(f"A filter cannot load from the offset {k - 2**32}." if k != PACKET_TYPE else
                            "A filter cannot ask for `inbound` or `outbound`: a packet on its way is both, at one device "
                            "after the other.")
        else:
            known, value = self._absolute(k, size, known)
            if mode == classic.MSH:
                value = f"({value} & 15) * 4"
        self._lines.append(f"{'a' if code & 7 == classic.LD else 'x'} = {value};")
        return known

    def _absolute(self, offset: int, size: int, known: Known) -> tuple[Known, str]:
        if offset < 12 or offset + size > 14:  # every frame has a type
            known = self._look("frame", known)
            self._lines.append(f"if (end < {offset + size}) return false;")
        return self._value(offset, size, known)

    def _value(self, offset: int, size: int, known: Known) -> tuple[Known, str]:
        """The value at an offset of the frame, of one piece or put together from several."""
        halves = {12: "type", 14: "tci", 16: "inner"} if self._tags else {12: "protocol"}
        if offset in halves and size == 2:
            known = self._look("tag", known) if offset > 12 else known
            return known, f"be16({halves[offset]})" if offset == 12 else halves[offset]
        if offset & ~1 in halves and size == 1:
            known, half = self._value(offset & ~1, 2, known)
            return known, f"({half} & 255)" if offset & 1 else f"({half} >> 8)"
        window, base = ("network", self._body) if offset >= self._body else ("ethernet", 0)
        if offset - base + size > WINDOW_BYTES:
            self._lines.append(f"LOOK(other, frame + {offset}, {size});")
            return known, _value_in("other", 0, size)
        if (offset >= self._body or offset + size <= 12) and (offset - base) % size == 0:
            return self._look(window, known), _value_in(window, offset - base, size)
        known, high = self._value(offset, size // 2, known)
        known, low = self._value(offset + size // 2, size // 2, known)
        return known, f"((u32){high} << {4 * size} | {low})"

    def _indirect(self, k: int, size: int, known: Known) -> tuple[Known, str]:
        known = self._look("frame", known)
        self._lines += [f"at = x + {k:#x};", f"if (end < {size} || at > end - {size}) return false;"]
        header = _header(known)
        if header is None or k < self._body:
            absent = f"{'tagged || ' if self._tags else ''}!has_ethernet(skb, frame)"
            self._lines.append(f"if (at < {self._body} && ({absent})) return false;")
        first, last = self._transport.get(header, (0, 0)) if header is not None else (0, 0)
        if first <= k and k + size <= last and (k - first) % size == 0:
            looked = ("transport", header or 0)
            if looked not in known:
                self._lines.append(f"LOOK(transport, frame + x + {first}, {last - first});")
            known = frozenset(fact for fact in known if fact[0] != "transport") | {looked}
            return known, _value_in("transport", k - first, size)
        self._lines.append(f"LOOK(other, frame + at, {size});")
        return known, _value_in("other", 0, size)

    def _look(self, window: str, known: Known) -> Known:
        """Have the window open here."""
        if (window, 0) in known:
            return known
        tag = " - (tagged ? 4 : 0)" if self._tags else ""
        match window:
            case "frame":
                lines = [f"frame = get_frame(skb, l3, protocol){tag};", "end = get_end(skb, frame);"]
            case "ethernet":
                start = "frame + (tagged ? 4 : 0)" if self._tags else "frame"
                lines = [f"if (!has_ethernet(skb, {start})) return false;", f"LOOK(ethernet, {start}, 12);"]
            case "tag":
                lines = ["if (tagged) { tci = LOAD(skb, vlan_tci); inner = be16(protocol); }",
                         "else { LOOK(tag, frame + 14, 4); tci = be16(*(u16 *)&tag[0]); inner = be16(*(u16 *)&tag[2]); }"]
            case _:
                lines = [f"LOOK(network, frame + {self._body}, {self._size['network']});"]
        self._lines += lines
        return known | {(window, 0)}


def _targets(at: int, instruction: Instruction) -> list[int]:
    if instruction.code & 7 == classic.JMP:
        ways = [instruction.k] if instruction.code & 0xF0 == classic.JA else [instruction.jt, instruction.jf]
        return [at + 1 + way for way in ways]
    return [at + 1]


def _is_load(instruction: Instruction, mode: int) -> bool:
    return instruction.code & 7 in (classic.LD, classic.LDX) and instruction.code & 0xE0 == mode


def _header(known: Known) -> int | None:
    """Where the header begins whose length is in X."""
    return next((k for fact, k in known if fact == "x"), None)


def _value_in(window: str, offset: int, size: int) -> str:
    place = f"{window}[{offset}]"
    return place if size == 1 else TYPES[size].format(place)
