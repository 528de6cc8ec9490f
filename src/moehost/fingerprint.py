"""By what a benchmark's machine is known: hardware, software, model and command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from moehost import os_release, plan
from moehost.hardware import HardwareError, node_from_facts

MACHINE = ("lscpu", "meminfo", "nvidia_smi", "has_memory", "l3_ids", "measured")


def of_node(texts: Mapping[str, str]) -> dict[str, Any]:
    """The fingerprint of a service on a node, from the texts of the fact `Served`; what is not known is left out."""
    found: dict[str, Any] = {}
    try:
        node = node_from_facts(**{key: texts[key] for key in MACHINE})
        found |= {"cpu": node.cpu.model, "sockets": node.cpu.sockets, "cores": node.cpu.cores}
        found |= {"numa_nodes": node.cpu.numa_nodes, "memory_mib": node.memory_mib}
        found |= {"gpus": [gpu.name for gpu in node.gpus]}
    except HardwareError:
        pass
    system = os_release.fields(texts["os_release"])
    lines = {key: " ".join(sorted(set(texts[key].split()))) for key in ("driver", "power", "governors", "kernel")}
    build, manifest = _object(texts["build"]), _object(texts["manifest"])
    plan = _object(texts["plan"])
    found |= {
        "os": system.get("PRETTY_NAME", ""),
        "kernel": lines["kernel"],
        "driver": lines["driver"],
        "power_limit_w": lines["power"],
        "governor": lines["governors"],
        "engine": plan.get("engine", ""),
        "engine_commit": build.get("commit") or build.get("package", ""),
        "model": _model(manifest),
        "argv": plan.get("argv", []),
        "env": plan.get("env", {}),
    }
    return {key: value for key, value in found.items() if value not in ("", [], {})}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What became another machine, or other software, between two fingerprints: a line for each."""
    for key in dict.fromkeys([*before, *after]):
        was, now = before.get(key), after.get(key)
        if was == now:
            continue
        if key == "argv":
            yield from plan.differences({"argv": was or []}, {"argv": now or []})
        elif isinstance(was, dict) and isinstance(now, dict):
            yield from (f"{key} {line}" for line in changes(was, now))
        else:
            yield f"{key}: {_said(was)} -> {_said(now)}"


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _model(manifest: dict[str, Any]) -> dict[str, Any]:
    if not manifest:
        return {}
    return {"name": manifest["model"], "sha256": {each["name"]: each["sha256"] for each in manifest["files"]}}


def plan_of(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """The plan that a service runs by."""
    return _object(texts["plan"]) or None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
