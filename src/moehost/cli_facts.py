"""`moehost facts`: what a host is, as far as its tuning depends on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from moehost import settings
from moehost.hardware import HardwareError
from moehost.terminal import FAILED, ask_host, data_of, host_of, stop
from moehost.topology import parse

FACT = "roles.host_tuning.facts.Topology"


@click.command()
@click.argument("target", metavar="@HOST")
@click.option("--json", "as_json", is_flag=True, help="The facts for programs; units are in the keys.")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def facts(target: str, as_json: bool, inventory: str) -> None:
    """Say what a host is: NUMA nodes, memory channels, frequencies, huge pages, limits, the disk of the models.

    Asks the host once and changes nothing. Without root the memory modules are not known. Ends with 0, 1 when the
    host can't be asked, 2 on bad input.

    \b
    Example:
        moehost facts @epyc.home.arpa
        moehost facts @epyc.home.arpa --json | jq .huge_pages
    """
    name, data = host_of(target), data_of(target, inventory)
    try:
        models_dir = settings.read(data).models_dir
    except settings.SettingsError as error:
        stop(*(f"{name}: {line}" for line in error.lines))
    texts, reason = ask_host(name, inventory, FACT)
    if not any((texts or {}).values()):
        stop(f"{name}: can't be asked: {reason or 'it gave no answer'}", code=FAILED)
    try:
        data = parse(texts, models_dir).to_json(models_dir)
    except HardwareError as error:
        stop(f"{name}: {error}", code=FAILED)
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    for key, value in _rows(data):
        click.echo(f"{key:16} {value}")


def _rows(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts as lines for people; one without a key belongs to the one before."""
    cpu, frequency, pages = data["cpu"], data["frequency"], data["huge_pages"]
    kinds = {"a container": data["container"], "a virtual machine": data["virtual_machine"]}
    yield "host", next((f"{kind} ({name})" for kind, name in kinds.items() if name), "a machine")
    yield "processor", f"{cpu['model']}: {cpu['sockets']} socket(s), {cpu['cores']} cores, {cpu['threads']} threads"
    nodes = ", ".join(f"{each['node']}: {each['memory_mib'] / 1024:.1f} GiB" for each in data["numa_nodes"])
    yield "NUMA", f"{cpu['numa_mode']}, {cpu['l3_domains']} L3 cache(s); memory of the nodes {nodes}"
    yield "memory", f"{data['memory_mib'] / 1024:.1f} GiB; {_channels(data['memory_channels'])}"
    driver = ", ".join(frequency["drivers"]) or "no driver"
    governors = ", ".join(f"{name} on {number}" for name, number in frequency["governors"].items())
    boost = {True: "on", False: "off", None: "not known"}[frequency["boost"]]
    yield "frequency", f"{driver}; {governors or 'no governor'}; boost {boost}"
    latencies = ", ".join(frequency["resume_latency_us"]) or "not known"
    yield "wake-up", f"limit for each core {latencies} us (0: none), for all {frequency['cpu_dma_latency_us']} us"
    yield "huge pages", f"transparent: {pages['transparent']}, defrag: {pages['defrag']}"
    for pool in pages["pools"]:
        if pool["pages"]:
            there = f"{pool['pages']} static pages of {pool['page_mib']} MiB, {pool['free_pages']} free"
            yield "", f"node {pool['node']}: {there}"
    for index, (key, value) in enumerate(data["sysctl"].items()):
        yield "" if index else "sysctl", f"{key} = {value}"
    if disk := data["models_dir"]:
        options = ",".join(disk["mount_options"])
        yield "models", f"{disk['path']} on {disk['source']} ({disk['file_system']}, {options})"
        turns = "turns" if disk["rotational"] else "does not turn"
        queue = f"read-ahead {disk['read_ahead_kib']} KiB, scheduler {disk['scheduler']}, {turns}"
        layers = ", ".join(disk["layers"]) or disk["source"]
        yield "", f"disk {disk['disk']}: {queue}" if disk["disk"] else f"not on a single disk: {layers}"
    memlock = data["limits"]["memlock_bytes"]
    yield "limits", f"memlock {'not known' if memlock is None else f'{memlock} bytes'}"
    yield "cgroup", f"version {data['cgroup_version']}"
    yield "command line", " ".join(data["kernel_command_line"])


def _channels(found: dict[str, Any]) -> str:
    """Memory channels as a person says it."""
    if found["filled"] is None:
        return "modules not known (needs root and dmidecode)"
    of = f" of {found['of']}" if found["of"] else ""
    return f"{found['filled']}{of} channels filled, {found['speed_mt_s']} MT/s of {found['rated_mt_s']}"
