"""The life of a node: from a bare machine to a server that answers."""

from roles.base import base
from roles.firewall import firewall
from roles.gateway import gateway
from roles.gpu_gate import gpu_gate
from roles.host_tuning import host_tuning
from roles.ik_llama import ik_llama
from roles.llama_server import llama_server
from roles.metrics import metrics
from roles.models import models
from roles.node import this_node
from roles.notify import notify
from roles.nvidia_container_toolkit import nvidia_container_toolkit
from roles.nvidia_driver import nvidia_driver
from roles.router import router
from roles.rpc_worker import idle_workers_gone, rpc_worker

if node := this_node():
    base(node)
    nvidia_driver(node)
    nvidia_container_toolkit(node)
    gpu_gate(node)
    ik_llama(node)
    models(node)
    host_tuning(node)
    rpc_worker(node)
    llama_server(node)
    idle_workers_gone()
    gateway(node)
    router(node)
    firewall(node)
    metrics(node)
    notify(node)
