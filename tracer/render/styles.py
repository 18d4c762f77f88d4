"""Colours, as rich names them: they repeat what the words say and are never the only sign."""

from tracer.model.journey import Result, Role

RESULT = {Result.DELIVERED: "bold green", Result.LEFT: "bold green", Result.RELAYED: "bold green",
          Result.DROPPED: "bold red", Result.UNKNOWN: "bold yellow"}
ROLE = {Role.SWITCH: "cyan", Role.NIC: "magenta"}
REWRITE, NAME, DIM, WARNING = "bold yellow", "bold", "dim", "yellow"
