"""Classic BPF, what libpcap makes of a filter expression, and what it says of a frame."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

# Parts of an opcode, as include/uapi/linux/bpf_common.h names them.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)  # code & 0x07
SIZES = {0x00: 4, 0x08: 2, 0x10: 1}  # of a load, code & 0x18
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0  # of a load, code & 0xe0
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR = range(0x00, 0xB0, 0x10)  # of ALU, code & 0xf0
JA, JEQ, JGT, JGE, JSET = range(0x00, 0x50, 0x10)  # of JMP, code & 0xf0
BY_X = 0x08  # ALU and JMP: the operand is X, else k
RET_A = 0x10
TXA = 0x80  # MISC, else TAX

WORD = 0xFFFFFFFF


class Instruction(NamedTuple):
    """struct sock_filter. Jumps count from the next instruction, and lead forward only."""

    code: int
    jt: int
    jf: int
    k: int


Program = tuple[Instruction, ...]


_CALCULATE: dict[int, Callable[[int, int], int]] = {
    ADD: operator.add, SUB: operator.sub, MUL: operator.mul, DIV: operator.floordiv, OR: operator.or_, AND: operator.and_,
    LSH: lambda a, by: a << (by & 31), RSH: lambda a, by: a >> (by & 31), NEG: lambda a, _: -a, MOD: operator.mod,
    XOR: operator.xor}
_COMPARE: dict[int, Callable[[int, int], bool]] = {
    JEQ: operator.eq, JGT: operator.gt, JGE: operator.ge, JSET: lambda a, operand: a & operand != 0}


def matches(program: Program, frame: bytes, length: int) -> bool:
    """Whether the program takes this frame, from its Ethernet header on. `length` is what it had on the wire; a load
    beyond the bytes that are here rejects, as in the kernel."""
    a = x = at = 0
    memory = [0] * 16
    while True:
        code, jt, jf, k = program[at]
        at += 1
        kind = code & 7
        if kind in (LD, LDX):
            mode, size = code & 0xE0, SIZES[code & 0x18]
            if mode in (ABS, IND, MSH):
                offset = (k + x if mode == IND else k) & WORD
                if offset + size > len(frame):
                    return False
                value = int.from_bytes(frame[offset:offset + size], "big")
                if mode == MSH:
                    value = (value & 15) * 4
            else:
                value = memory[k] if mode == MEM else length if mode == LEN else k
            a, x = (value, x) if kind == LD else (a, value)
        elif kind in (ST, STX):
            memory[k] = a if kind == ST else x
        elif kind == ALU:
            operand = x if code & BY_X else k
            if code & 0xF0 in (DIV, MOD) and not operand:
                return False
            a = _CALCULATE[code & 0xF0](a, operand) & WORD
        elif kind == JMP:
            operand = x if code & BY_X else k
            at += k if code & 0xF0 == JA else jt if _COMPARE[code & 0xF0](a, operand) else jf
        elif kind == RET:
            return (a if code & 0x18 == RET_A else k) != 0
        else:
            a, x = (x, x) if code & 0xF8 == TXA else (a, a)
