"""Layers of other nodes' models: guarded first, held by a hardened unit each, taken away when nobody wants them."""

from pyinfra import host
from pyinfra.api import deploy

from moehost.settings import Node
from moehost.sharing import peers
from roles.base import PROGRAMS
from roles.firewall.operations import filtered
from roles.node import inventory_shares
from roles.operations import files, render
from roles.rpc_worker.operations import gone, working


@deploy("Worker")
def rpc_worker(node: Node) -> None:
    shares = inventory_shares()
    mine, known = [each for each in shares if each.worker == host.name], peers(shares, host.name)
    if known.doors or known.calls:
        # Before anything listens here, or calls from here.
        filtered(name="Guard the workers", node=node, peers=known)
    if mine:
        files(
            name="Install the program of a start",
            contents={f"{PROGRAMS}/worker-listens": render("rpc_worker/worker-listens.j2")},
            mode="755",
        )
    for share in host.loop(mine):
        working(name=f"Hold layers of {share.service} for {share.main}", node=node, share=share)


@deploy("Worker")
def idle_workers_gone() -> None:
    """After the services: one that has gone back to its own node has done so by then, and loses nothing."""
    units = [each.unit for each in inventory_shares() if each.worker == host.name]
    gone(name="Take away workers that nobody wants", units=units)
