"""`moehost plan` and `moehost calibrate`: where a model's tensors go on a machine, and how fast that will be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from moehost import calibration, download, dry_run, gguf, mistakes, remote, settings, show, source
from moehost import plan as planning
from moehost import verify as verification
from moehost.dry_run import Difference
from moehost.hardware import HardwareError, Node, node_from_facts
from moehost.model import Model
from moehost.planner import DoesNotFit
from moehost.settings import Service, SettingsError
from moehost.settings_rpc import Rpc
from moehost.speed import PUBLISHED, Constants
from moehost.store import StoreError
from moehost.terminal import DOES_NOT_FIT, FAILED, ask_host, host_of, stop
from moehost.verify import VerifyError
from moehost.worker import LINKS, of_settings

_model = click.option(
    "--model",
    required=True,
    help="The model: a file, an https:// address or hf://OWNER/REPO/PATH@COMMIT (header only).",
)
_node = click.option("--node", required=True, help="The machine: a file NODE.json, or @HOST of the inventory.")
_inventory = click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
_engine = click.option(
    "--engine", type=click.Choice(["ik", "llama.cpp"]), default="ik", show_default=True, help="The engine's dialect."
)
_endpoint = click.option("--hf-endpoint", default=source.HUB_ENDPOINT, show_default=True, help="Hub of hf://.")
_token = click.option("--hf-token-file", type=click.Path(exists=True, dir_okay=False), help="File with its token.")
PLACEMENTS = ("auto", "cpu-moe", "tensor-split", "manual", "rpc")


NO_WORKERS = "--placement rpc needs workers; name them with --rpc WORKER.json or --rpc @HOST"


@click.command()
@_model
@_node
@click.option("--context", type=int, help="Tokens of all slots together; what the model was trained on if not given.")
@click.option("--kv-type", default="f16", show_default=True, help="Type of the KV cache.")
@click.option("--ubatch", type=int, help="Tokens computed at once; chosen for the workload if not given.")
@click.option("--parallel", type=int, default=1, show_default=True, help="Slots: requests served at once.")
@click.option(
    "--placement", type=click.Choice(PLACEMENTS), default="auto", show_default=True, help="See docs/planning.md."
)
@click.option("--gpu-experts", multiple=True, help="For tensor-split, once per card: layers such as 0-12,20.")
@click.option("--rule", "rules", multiple=True, help="For manual: REGEX=DEVICE, in order.")
@click.option("--rpc", "workers", multiple=True, help="A node that may hold layers: WORKER.json or @HOST, in order.")
@click.option("--link", type=click.Choice(list(LINKS)), default="10GbE", show_default=True, help="To the workers.")
@click.option("--link-gb-s", type=float, help="Its throughput, GB/s, if measured.")
@click.option("--latency-us", type=float, help="Its round trip, microseconds, if measured.")
@click.option(
    "--worker-memory",
    type=click.Choice(["auto", "cards", "ram"]),
    default="auto",
    show_default=True,
    help="What of a worker holds layers.",
)
@click.option("--workload", default="4096,512", show_default=True, help="Tokens of the typical prompt and answer.")
@click.option("--threads", type=int, help="Threads of decode.")
@click.option("--margin", "margin_mib", type=int, default=1024, show_default=True, help="MiB left free on each card.")
@_engine
@click.option(
    "--calibration", "constants_file", type=click.Path(exists=True, dir_okay=False), help="From `calibrate`."
)
@click.option("--compare", help="Placements side by side, e.g. cpu-moe,auto.")
@click.option(
    "--verify", help="Let an engine try the plan without the weights: @HOST, or the path of a llama-server."
)
@click.option("--overcommit", is_flag=True, help="With --verify: the machine may have less memory than the model.")
@click.option("--explain", is_flag=True, help="Say which bytes make up each number.")
@click.option("--json", "as_json", is_flag=True, help="The plan for programs.")
@_inventory
@_endpoint
@_token
def plan(
    model: str,
    node: str,
    engine: Any,
    constants_file: str | None,
    compare: str | None,
    verify: str | None,
    overcommit: bool,
    explain: bool,
    as_json: bool,
    inventory: str,
    hf_endpoint: str,
    hf_token_file: str | None,
    workers: tuple[str, ...],
    link: Any,
    link_gb_s: float | None,
    latency_us: float | None,
    worker_memory: Any,
    **wishes: Any,
) -> None:
    """Decide where a model's tensors live on a machine, prove that they fit, and predict the speed.

    Reads the model's header only, so a plan exists before the download. Ends with
    2 on bad input, 3 when it does not fit.

    \b
    Example:
        moehost plan --model /srv/models/qwen/Q-00001-of-00006.gguf --node node.json
        moehost plan --model hf://OWNER/REPO/PATH@COMMIT --node @epyc.home.arpa --context 131072 --json
        moehost plan --model Q.gguf --node node.json --compare cpu-moe,auto,tensor-split \\
                     --gpu-experts 0-12 --gpu-experts 47-59
        moehost plan --model hf://OWNER/REPO/PATH@COMMIT --node @epyc.home.arpa --verify @epyc.home.arpa
        moehost plan --model Q.gguf --node node.json --compare auto,rpc --rpc worker.json --link 25GbE
    """
    differences: list[Difference] = []
    try:
        found, read_heads = read_headers(model, hf_endpoint, hf_token_file)
        machine = read_node(node, inventory)
        constants = _constants(constants_file)
        rpc = _rpc(workers, link=link, link_gb_s=link_gb_s, latency_us=latency_us, memory=worker_memory)
        helpers = of_settings(rpc, [read_node(each, inventory) for each in workers]) if rpc else ()
        names = [each.strip() for each in compare.split(",")] if compare else [wishes["placement"]]
        plans = {}
        for name in names:
            if name not in PLACEMENTS:
                raise ValueError(f"--compare: {name!r} is not one of {', '.join(PLACEMENTS)}")
            # Side by side, the layers and rules that are given belong to the placements that take them.
            foreign = {"gpu_experts": (), "rules": ()} if compare else {}
            own = {"tensor-split": "gpu_experts", "manual": "rules"}.get(name)
            mine = {own: wishes[own]} if own else {}
            if name == "rpc" and (not rpc or verify):
                raise ValueError("--verify: needs the workers themselves; leave it out" if rpc else NO_WORKERS)
            shared = {"rpc": rpc.model_dump()} if rpc and name == "rpc" else {}
            service = _service(**{**wishes, **foreign, **mine, **shared, "placement": name})
            path = model if Path(model).exists() else found.headers[0].name
            plans[name] = planning.make(service, path, found, machine, engine, constants, workers=helpers)
        if verify:
            asked = host_of(verify) if verify.startswith("@") else str(Path(verify).resolve())
            made = plans[names[0]]
            buffers = verification.ask(made, found, read_heads(), asked, inventory, overcommit)
            differences = dry_run.compare(made.placement.rows, buffers)
    except DoesNotFit as lack:
        stop(str(lack), code=DOES_NOT_FIT)
    except VerifyError as reason:
        stop(str(reason), code=FAILED)
    except SettingsError as error:
        stop(*(re.sub(r"^services\[0\]\.?", "--", line).replace("_", "-", 1) for line in error.lines))
    except (ValueError, OSError, StoreError) as error:
        stop(str(error))
    if as_json:
        data = {name: each.to_json(engine) for name, each in plans.items()}
        if verify:
            data[names[0]]["verification"] = [asdict(each) for each in differences]
        click.echo(json.dumps(data if compare else data[names[0]], indent=2))
    elif compare:
        show.comparison(plans)
    else:
        show.plan(plans[names[0]], explain)
    if verify and not as_json:
        show.verification(differences)
    if not all(each.is_within for each in differences):
        stop("the ledger and the engine disagree; the engine's sizes count", code=FAILED)


def _service(workload: str, gpu_experts: tuple[str, ...], rules: tuple[str, ...], **wishes: Any) -> Service:
    """The options as a service's settings, so that both are checked by the same rules."""
    tokens = re.fullmatch(r"(\d+),(\d+)", workload)
    if not tokens:
        raise ValueError(f"--workload: {workload!r} is not PROMPT,ANSWER; write e.g. 4096,512")
    wishes |= {"gpu_experts": list(gpu_experts), "rules": list(rules)}
    wishes |= {"workload": {"prompt_tokens": int(tokens[1]), "answer_tokens": int(tokens[2])}}
    model = {"name": "planned", "source": "file:///planned.gguf"}
    service = {"name": "planned", "model": model, **wishes}
    return settings.read({"engine": {"rpc": True}, "services": [service]}).services[0]


def _rpc(workers: tuple[str, ...], **link: Any) -> Rpc | None:
    """The workers as a service's setting, with addresses made up: what is planned at a desk has none yet."""
    if not workers:
        return None
    names = [host_of(each) if each.startswith("@") else Path(each).stem for each in workers]
    found = [{"host": name, "address": f"10.0.0.{n}"} for n, name in enumerate(names, 2)]
    try:
        return Rpc.model_validate({"network": "10.0.0.0/24", "address": "10.0.0.1", "workers": found, **link})
    except ValidationError as error:
        raise ValueError(f"--rpc: {'; '.join(mistakes.lines(error, Rpc))}") from None


def read_headers(model: str, endpoint: str, token_file: str | None) -> tuple[gguf.GgufSet, Callable[[], list[bytes]]]:
    """The headers of a model, wherever it is, and a function that reads their bytes.

    Raises ValueError, OSError or StoreError with one line.
    """
    where = source.parse(model) if "://" in model else None
    if where is None or isinstance(where, source.FileSource):
        found = gguf.read_model(Path(where.folder, where.names[0]) if where else Path(model))
        return found, lambda: gguf.read_heads(found)
    token = Path(token_file).read_text().strip() if token_file else None
    if isinstance(where, source.HubSource):
        names = where.names or tuple(
            file.name for file in source.hub_files(where, download.tree(where.tree_url(endpoint), token))
        )
        url = where.resolve_url(endpoint, names[0])
    else:
        url, token = where.url(where.names[0]), None
    found = remote.read_url(url, token)
    return found, lambda: remote.read_heads(url, found, token)


def read_node(node: str, inventory: str) -> Node:
    """The machine of a NODE.json, or of a host of the inventory, which is asked."""
    if not node.startswith("@"):
        try:
            return Node.from_json(json.loads(Path(node).read_text()))
        except json.JSONDecodeError as error:
            raise HardwareError(f"{node}: is no JSON ({error}); see docs/planning.md for an example") from None
    texts, reason = ask_host(host_of(node), inventory, "roles.facts.Machine")
    if not texts:
        raise HardwareError(f"{node}: can't be asked: {reason}")
    return node_from_facts(**texts)


def _constants(path: str | None) -> Constants:
    return calibration.from_json(json.loads(Path(path).read_text())) if path else PUBLISHED


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_model
@_node
@_engine
@_inventory
@_endpoint
@_token
def calibrate(
    file: Path, model: str, node: str, engine: Any, inventory: str, hf_endpoint: str, hf_token_file: str | None
) -> None:
    """Refit the speed model to measurements in FILE; prints the constants for `plan --calibration`.

    FILE is a list of two or more points: experts as a plan's JSON names them, ubatch, decode_tok_s, and prompt_tok_s
    by prompt length where it was measured.

    \b
    Example:
        moehost calibrate points.json --model Q.gguf --node node.json > constants.json
        [{"experts": {"CPU": [0, 1]}, "ubatch": 2048, "decode_tok_s": 22.5, "prompt_tok_s": {"4699": 314}}, ...]
    """
    try:
        machine, (found, _) = read_node(node, inventory), read_headers(model, hf_endpoint, hf_token_file)
        points = calibration.read_points(json.loads(file.read_text()), Model.from_gguf(found), machine, engine)
        click.echo(json.dumps(calibration.to_json(calibration.calibrate(machine, points)), indent=2))
    except json.JSONDecodeError as error:
        stop(f"{file}: is no JSON ({error})")
    except (ValueError, OSError, StoreError) as error:
        stop(str(error))
