"""What the engine itself says of a plan: before a start by a dry run, after it by what the cards hold."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pyinfra import host, logger
from pyinfra.facts.files import FileContents

from moehost import dry_run
from moehost.plan import Plan
from moehost.rehearsal import Job, Result
from moehost.settings import Service
from roles.facts import from_json
from roles.llama_server.facts import Rehearsal, VramUsed
from roles.models.operations import LIBRARY


def key(plan: Plan, build: str) -> str:
    """What a rehearsal belongs to: the plan before any correction, and the engine's build."""
    return hashlib.sha256(f"{json.dumps(plan.to_json(build))}".encode()).hexdigest()[:16]


def tried(
    service: Service, plan: Plan, key: str, folder: str, dialect: str, state: dict[str, Any], engine: str
) -> dict[str, Any] | None:
    """The record of the engine's own check of a plan with cards: the one that is kept, or a new one.

    Only ik_llama.cpp can try a plan, and only while no server of this service holds the cards; without a record the
    plan stands as the ledger has it. Raises ValueError where the engine refuses the plan.
    """
    if dialect != "ik" or not plan.node.gpus or service.rpc:
        # A worker has one client at a time: while it serves, a trial would wait for ever.
        return None
    record = from_json("\n".join(host.get_fact(FileContents, path=f"{folder}/rehearsal.json") or [])) or {}
    if record.get("key") == key:
        return dict(record)
    if state.get("MainPID") not in (None, "0"):
        logger.info("[%s] %s: holds the cards, so the new plan is not tried before", host.name, service.name)
        return None
    return rehearsal(plan, key, engine)


def rehearsal(plan: Plan, key: str, engine: str) -> dict[str, Any]:
    """Let the engine allocate the plan's buffers; the record to keep, with the margins for planning once more.

    Raises ValueError where the engine refuses the plan.
    """
    job = Job(engine=f"{engine}/bin/llama-server", argv=tuple(plan.arguments), env=plan.placement.env)
    answer = host.get_fact(Rehearsal, job=job.to_json(), library=LIBRARY)
    if not answer:
        raise ValueError("the engine could not try the plan; run `python3 -m moehost.rehearse` on the node")
    result = Result.parse(json.dumps(answer))
    if result.refusal:
        raise ValueError(f"the engine tried the plan without the weights: {result.refusal}")
    rows, buffers = plan.placement.rows, dry_run.parse(result.log)
    differences = dry_run.compare(rows, buffers)
    for each in differences:
        if not each.is_within:
            logger.info(
                "[%s] %s %s: the ledger says %.0f MiB, the engine %s",
                *(host.name, each.device, each.what, each.ledger_mib, each.engine_mib),
            )
    margins = list(dry_run.corrected_margins(rows, buffers))
    return {"key": key, "margins_mib": margins, "differences": [asdict(each) for each in differences]}


def in_use(plan: Plan) -> tuple[dict[str, dict[str, int]], str | None]:
    """What each card holds beside what the ledger says, MiB, and why that can't be right, if so."""
    measured, problem = {}, None
    cards = zip(plan.placement.rows, plan.least_mib, host.get_fact(VramUsed), strict=False)
    for row, least_mib, used_mib in cards:
        measured[row.device] = {"ledger_mib": row.used_mib, "used_mib": used_mib}
        if used_mib < least_mib:
            problem = (
                f"{row.device} holds {used_mib} MiB where the plan puts {row.used_mib} MiB: "
                "the engine is on the CPU; see its log for CUDA"
            )
    return measured, problem
