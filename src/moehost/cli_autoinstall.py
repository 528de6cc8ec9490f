"""`moehost autoinstall`: what an installer reads to make a bare machine fit for `moehost node add`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moehost import autoinstall as installing
from moehost import settings
from moehost.ansible_inventory import SCHEME
from moehost.settings import SettingsError
from moehost.terminal import hosts, say, stop


@click.command()
@click.argument("name")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option(
    "--os", type=click.Choice(["ubuntu", "debian"]), default="ubuntu", show_default=True, help="24.04 or 13."
)
@click.option("--ssh-key", required=True, type=click.Path(exists=True, dir_okay=False), help="Your public key.")
@click.option("--disk", required=True, help="Disk of the system, e.g. /dev/disk/by-id/nvme-...; it is wiped.")
@click.option("--models-disk", help="Disk of the models; the system's if not given. Wiped without --keep-models.")
@click.option("--keep-models", is_flag=True, help="Reinstall: leave the models disk alone, and mount it.")
@click.option("--models-dir", help="Where the models lie; the inventory's, or /srv/models.")
@click.option("--hostname", help="Name of the machine; NAME up to its first dot if not given.")
@click.option("--address", help="Address it will have, for the last line that is printed.")
@click.option("--user", default="admin", show_default=True, help="User with your key, and sudo.")
@click.option("--timezone", default="Etc/UTC", show_default=True, help="Its time zone.")
@click.option("--locale", default="en_US.UTF-8", show_default=True, help="Its language.")
@click.option("--inventory", default="inventory", show_default=True, help="Where NAME is looked up.")
def autoinstall(
    name: str,
    out: Path,
    ssh_key: str,
    models_dir: str | None,
    hostname: str | None,
    address: str | None,
    inventory: str,
    **wishes: Any,
) -> None:
    """Write what Ubuntu's or Debian's installer needs to install NAME without a question.

    The system has your key, an SSH server, python3, a file system labelled models, and no password and no
    swap. Where NAME is in the inventory, its models_dir and address count. Nothing is installed by this command.

    \b
    Example:
        moehost autoinstall epyc --out seed --ssh-key ~/.ssh/id_ed25519.pub \\
                --disk /dev/disk/by-id/nvme-A --models-disk /dev/disk/by-id/nvme-B
        moehost autoinstall epyc --out seed --ssh-key ~/.ssh/id_ed25519.pub --os debian \\
                --disk /dev/disk/by-id/nvme-A --models-disk /dev/disk/by-id/nvme-B --keep-models
    """
    is_there = Path(inventory).exists() or inventory.startswith(SCHEME)
    known = hosts(inventory).get(name, {}) if is_there else {}
    address = address or known.get("ssh_hostname")
    try:
        models_dir = models_dir or settings.read(known).models_dir
        wish = installing.read(
            hostname=hostname or name.partition(".")[0],
            ssh_key=Path(ssh_key).read_text(),
            models_dir=models_dir,
            **wishes,
        )
        out.mkdir(parents=True, exist_ok=True)
        for file, text in installing.render(wish).items():
            (out / file).write_text(text)
    except SettingsError as error:
        stop(*error.lines)
    except (OSError, ValueError) as error:
        stop(str(error))
    say(f"wrote {', '.join(str(out / file) for file in installing.render(wish))}")
    for line in installing.next_steps(wish, out, name, address):
        click.echo(line)
