"""What `dnettrace doctor` found, as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from typing import TextIO

from tracer.model.health import Ability, Diagnosis
from tracer.render.json_lines import SCHEMA, JsonRenderer


def print_json(diagnosis: Diagnosis, stream: TextIO) -> None:
    """`state` is "good", "less" (something cannot be shown), "bad" or "unknown" (not tried); of a check, null where it is
    told and not judged."""
    health, trial = diagnosis.health, diagnosis.health.trial
    JsonRenderer(stream).record({
        "type": "doctor", "schema": SCHEMA, "version": diagnosis.version, "where": health.where, "kernel": health.release,
        "machine": health.machine, "whole": diagnosis.whole,
        "checks": [{"name": check.name, "state": check.state.value if check.state else None, "text": check.text}
                   for check in diagnosis.checks],
        "software": {part.name: part.version for part in health.parts},
        "rights": asdict(health.rights),
        "mechanisms": [asdict(tried) for tried in trial.mechanisms] if trial else [],
        "probes": {"attached": list(trial.attached) if trial else [],
                   "missing": [asdict(missing) for missing in trial.missing] if trial else []},
        "engines": [asdict(engine) for engine in health.engines],
        "sysctls": dict(health.settings),
        "rules": dict(health.tables.rules), "iptables": health.tables.iptables,
        "commands": [_command(ability) for ability in diagnosis.abilities],
    })


def _command(ability: Ability) -> dict[str, object]:
    return {"name": ability.command, "state": ability.state.value, "lacks": [asdict(lack) for lack in ability.lacks]}
