"""Whether the services of a node serve."""

from pyinfra.api import FactBase

from roles.facts import Texts

SERVICES = (
    "$({ systemctl list-unit-files --plain --no-legend 'llama-server-*.service'; "
    "systemctl list-units --all --plain --no-legend 'llama-server-*.service'; } | cut -d' ' -f1 | sort -u)"
)


class Serving(Texts, FactBase[dict[str, str]]):
    """Whether the services of a node answer now, as texts for `moehost.fleet`."""

    commands = {
        # The address that the unit itself asked before it was ready; 000 where nobody answers.
        "answers": f"for unit in {SERVICES}; do "
        "url=$(systemctl cat $unit | sed -n 's,^ExecStartPost=.*/wait-ready \\([^ ]*\\) .*,\\1,p'); "
        'test -z "$url" || echo "$unit $(curl --silent --output /dev/null --max-time 10 --write-out '
        "'%{http_code}' $url/health)\"; done",
        # The unit's own check of the cards, once more: an engine may lose them while it serves.
        "cards": f"for unit in {SERVICES}; do "
        "systemctl cat $unit | sed -n 's,^ExecStartPost=\\(.*/cards-in-use .*\\),\\1,p' | sh 2>&1 | "
        'sed "s/^/$unit /"; done',
    }
