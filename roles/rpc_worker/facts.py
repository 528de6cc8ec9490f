"""What a node knows of the layers that it holds for others."""

from pyinfra.api import FactBase, QuoteString, StringCommand

from roles.facts import Machine, Texts
from roles.ik_llama.facts import ENGINE

UNITS = "/etc/systemd/system"


class Worker(Texts, FactBase[dict[str, str]]):
    """What a node has to hold layers with, as texts.

    `release`: the engine that is next; `build`: its build.json; `program`: its rpc-server; `addresses`: the node's
    own; and those of the fact `Machine`.
    """

    commands = {
        "release": f"test -e {ENGINE}/next/build.json && basename $(readlink {ENGINE}/next)",
        # A text that ends without its line would swallow the next key.
        "build": f"cat {ENGINE}/next/build.json && echo",
        "program": f"ls {ENGINE}/next/bin/rpc-server",
        "addresses": "ip -4 -oneline address show | awk '{ print $4 }' | cut -d/ -f1",
        **Machine.commands,
    }

    @staticmethod
    def machine(texts: dict[str, str]) -> dict[str, str]:
        """Of these texts those of `Machine`."""
        return {key: texts[key] for key in Machine.commands}


class InstalledWorkers(FactBase[list[str]]):
    """The names of the workers' units on this node."""

    default = list

    def command(self) -> str:
        return f"cd {UNITS} && ls -d moehost-rpc-*.service 2>/dev/null || true"

    def process(self, output: list[str]) -> list[str]:
        return output


class Waiting(FactBase[int]):
    """How many clients of a port wait to be accepted.

    A worker takes one at a time, and never notices that one has lost its power: the next waits behind it for ever.

    + port: TCP port
    """

    default = int

    def command(self, port: int) -> StringCommand:
        return StringCommand("ss --no-header --listening --tcp --numeric", QuoteString(f"sport = :{port}"))

    def process(self, output: list[str]) -> int:
        # LISTEN, those that wait, those that may wait ...
        return sum(int(line.split()[1]) for line in output)


class Answering(FactBase[list[str]]):
    """Those of some HOST:PORT that accept a connection from this node.

    + endpoints: what is tried
    """

    default = list

    def command(self, endpoints: list[str]) -> StringCommand:
        return StringCommand(
            "for endpoint in", *(QuoteString(each) for each in endpoints), "; do",
            "timeout 3 bash -c 'exec 3<>\"/dev/tcp/$0/$1\"' \"${endpoint%:*}\" \"${endpoint##*:}\" 2>/dev/null &&",
            "echo \"$endpoint\"; done; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[str]:
        return output


class Connected(FactBase[list[str]]):
    """Those of some HOST:PORT that this node has a connection to which both sides keep.

    A server whose worker has ended does not notice before the next request, and loses that.

    + endpoints: what is looked for
    """

    default = list

    def command(self, endpoints: list[str]) -> StringCommand:
        return StringCommand(
            "for endpoint in", *(QuoteString(each) for each in endpoints), "; do",
            "ss --no-header --tcp --numeric state established dst \"$endpoint\" | grep -q . &&",
            "echo \"$endpoint\"; done; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> list[str]:
        return output
