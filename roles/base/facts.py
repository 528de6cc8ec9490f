"""What a node has of moehost's accounts and directories."""

from pyinfra.api import FactBase, QuoteString, StringCommand

from moehost.confined import BUILDER, FETCHER


class Directories(FactBase[dict[str, str]]):
    """`owner:group mode` of each of the directories that is there, and of `account` if all accounts are.

    + paths: paths of directories
    """

    default = dict

    def command(self, paths: list[str]) -> StringCommand:
        return StringCommand(
            f"getent passwd moehost {BUILDER} {FETCHER} >/dev/null && echo present account;",
            "stat -L -c '%U:%G %a %n'", *(QuoteString(path) for path in paths), "2>/dev/null || true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, str]:
        pairs = (line.rsplit(" ", 1) for line in output)
        return {path: state for state, path in pairs}
