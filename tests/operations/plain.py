"""Operations played against a table of facts, without the YAML harness."""

import hashlib

from pyinfra.context import ctx_host, ctx_state
from pyinfra_testing.operations import parse_commands
from pyinfra_testing.util import FakeState


class Data(dict):
    """What the inventory has of a host."""

    def dict(self):
        return {**self}


class Host:
    """Answers facts by their class; a function is called with the arguments of the fact. Others are a LookupError."""

    name = "node.home.arpa"
    current_op_hash = None
    current_op_global_arguments = None

    def __init__(self, facts, **data):
        self.data = Data(data)
        self.facts, self.noops, self.lines, self.shell = facts, [], [], None

    def get_fact(self, fact, **arguments):
        answer = self.facts[fact]
        return answer(**arguments) if callable(answer) else answer

    def noop(self, description):
        self.noops.append(description)

    def get_temp_filename(self, *_, **__):
        return "/tmp/upload"

    def log(self, line, *_):
        self.lines.append(line)

    def log_styled(self, line, **_):
        self.lines.append(line)

    def run_shell_command(self, command, **arguments):
        return self.shell(str(command), **arguments)


def in_turn(*answers):
    """A fact that is asked several times; the last answer stays."""
    left = list(answers)
    return lambda **_: left.pop(0) if len(left) > 1 else left[0]


def play(operation, facts, **arguments):
    """The commands that an operation yields, in the form of the YAML cases, and why there are none."""
    host = Host(facts)
    with ctx_state.use(FakeState()), ctx_host.use(host):
        commands = parse_commands(list(operation._inner(**arguments)))
    return commands, host.noops


def sha256(text):
    """A digest as the fact FileStates has it."""
    return hashlib.sha256(text.encode()).hexdigest()
