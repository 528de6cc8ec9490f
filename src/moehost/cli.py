"""`moehost ...`: these modules (`cli`, `cli_*`, `show`, `terminal`) are the only ones that print."""

from __future__ import annotations

import json
from pathlib import Path

import click

from moehost import (
    cli_autoinstall,
    cli_bench,
    cli_deploy,
    cli_doctor,
    cli_engine,
    cli_facts,
    cli_keys,
    cli_lock,
    cli_measure,
    cli_metrics,
    cli_models,
    cli_node,
    cli_notify,
    cli_plan,
    cli_report,
    cli_router,
    cli_status,
    cli_tune,
    cli_vm,
    commands,
    reference,
    router,
    sandbox,
    settings,
    sharing,
)
from moehost.terminal import FAILED, hosts, say, stop


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moehost")
def main() -> None:
    """Provision homelab machines to serve 400B-class mixture-of-experts models.

    The machines themselves are provisioned by pyinfra; many of them at a time by `moehost deploy`:

    \b
        pyinfra inventory deploy.py          plan, ask, apply
        pyinfra inventory deploy.py --dry    plan only
        moehost deploy --serial 1            one node after the other
    """


main.add_command(cli_plan.plan)
main.add_command(cli_plan.calibrate)
main.add_command(cli_deploy.deploy)
main.add_command(cli_status.status)
main.add_command(cli_engine.engine)
main.add_command(cli_doctor.doctor)
main.add_command(cli_facts.facts)
main.add_command(cli_lock.lock)
main.add_command(cli_keys.keys)
main.add_command(cli_measure.measure)
main.add_command(cli_models.models)
main.add_command(cli_bench.bench)
main.add_command(cli_tune.tune)
main.add_command(cli_metrics.metrics)
main.add_command(cli_notify.notify)
main.add_command(cli_node.node)
main.add_command(cli_report.report)
main.add_command(cli_router.router)
main.add_command(cli_autoinstall.autoinstall)
main.add_command(cli_vm.vm)


@main.command("check-inventory")
@click.argument("inventory", default="inventory")
@click.option("--json", "as_json", is_flag=True, help="Print the settings of every host, defaults filled in.")
def check_inventory(inventory: str, as_json: bool) -> None:
    """Check the settings of all hosts in INVENTORY without connecting to any.

    \b
    Example:
        moehost check-inventory
        moehost check-inventory inventory/hosts.py --json | jq 'keys'
    """
    nodes, lines = {}, []
    there = hosts(inventory)
    for host, data in there.items():
        try:
            nodes[host] = settings.read(data)
        except settings.SettingsError as error:
            lines += [f"{host}: {line}" for line in error.lines]
    lines += [f"{host}: {line}" for host in nodes for line in sharing.problems(nodes, host)]
    for host, node in nodes.items():
        if node.router:
            found = router.mistakes(host, node.router, there, nodes)
            lines += [f"{host}: {line}" for line in found]
    if lines:
        stop(*lines)
    if as_json:
        click.echo(json.dumps({name: node.model_dump() for name, node in nodes.items()}, indent=2))
    else:
        for name, node in nodes.items():
            click.echo(f"{name}: {', '.join(service.name for service in node.services) or 'no services'}")


@main.command("settings")
def settings_reference() -> None:
    """Print the reference of all settings (Markdown).

    \b
    Example:
        moehost settings | less
    """
    click.echo(reference.page(), nl=False)


@main.command("commands")
def commands_reference() -> None:
    """Print the reference of all commands (Markdown).

    \b
    Example:
        moehost commands | less
    """
    click.echo(commands.page(main, "moehost"), nl=False)


@main.command("tiny-model")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), default=".sandbox/tiny-qwen35moe.gguf")
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True, help="Files to split it into.")
@click.option("--merged-gate-up", is_flag=True, help="Gate and up experts in one tensor.")
@click.option("--mtp", is_flag=True, help="With a layer for multi-token prediction.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
def tiny_model(path: Path, shards: int, merged_gate_up: bool, mtp: bool, seed: int) -> None:
    """Write a model of random weights with the tensor layout of Qwen3.5-MoE: it loads, answers, and talks gibberish.

    \b
    Example:
        moehost tiny-model
        moehost tiny-model /tmp/tiny.gguf --shards 3
    """
    from moehost import synthetic  # numpy takes a moment, and the other commands don't need it

    try:
        shape = synthetic.Shape(shards=shards, merged_gate_up=merged_gate_up, mtp=mtp, seed=seed)
    except ValueError as error:
        stop(str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    for written in synthetic.write(path, shape):
        click.echo(f"{written} {written.stat().st_size / 1e6:.1f} MB")


@main.group("sandbox")
def sandbox_group() -> None:
    """A node without hardware: Debian with systemd in a container on this computer."""


_name = click.option("--name", default=sandbox.NAME, show_default=True, help="Name of the container.")


@sandbox_group.command()
@_name
@click.option(
    "--suite",
    type=click.Choice(sandbox.SUITES),
    default=sandbox.SUITES[0],
    show_default=True,
    help="Debian's release.",
)
def up(name: str, suite: str) -> None:
    """Make and start the sandbox; SANDBOX_IMAGE takes an image of your own.

    \b
    Example:
        moehost sandbox up
        moehost sandbox up --suite bookworm --name old
        SANDBOX_IMAGE=localhost/ubuntu-systemd:24.04 moehost sandbox up --name noble
    """
    sandbox.up(name, say, suite)


@sandbox_group.command()
@_name
@click.option("--all", "everything", is_flag=True, help="Remove all sandboxes and their images.")
def down(name: str, everything: bool) -> None:
    """Remove the sandbox with everything in it.

    \b
    Example:
        moehost sandbox down --all
    """
    if everything:
        sandbox.clean(say)
    else:
        say(f"removed {name}" if sandbox.down(name) else f"there is no {name}")


@sandbox_group.command()
@_name
def status(name: str) -> None:
    """Say whether the sandbox runs, and its services.

    \b
    Example:
        moehost sandbox status
    """
    state = sandbox.state(name)
    click.echo(f"{name}: {state or 'absent'}")
    if state == "running":
        units = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "llama-server-*", "moehost-*")
        click.echo(sandbox.execute(name, *units), nl=False)


@sandbox_group.command()
@click.argument("question")
@click.option("--service", default="tiny", show_default=True, help="Name of the service to ask.")
@click.option("--tokens", default=48, show_default=True, help="Length of the answer, at most.")
@_name
def ask(question: str, service: str, tokens: int, name: str) -> None:
    """Ask a service of the sandbox, with its key, and print the answer.

    \b
    Example:
        moehost sandbox ask "What is a mixture of experts?"
    """
    folder = f"/etc/moehost/{service}"
    arguments = json.loads(sandbox.execute(name, "cat", f"{folder}/plan.json"))["argv"]
    port = arguments[arguments.index("--port") + 1]
    key = sandbox.execute(name, "cat", f"{folder}/api-keys").split()[0]
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens}
    # The key goes to curl over standard input: arguments can be read by everybody.
    config = f'header = "Authorization: Bearer {key}"\ndata = {json.dumps(json.dumps(body))}\n'
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    answer = json.loads(sandbox.execute(name, "curl", "--silent", "--show-error", "--config", "-", url, stdin=config))
    if "error" in answer:
        stop(f"{service} answers: {answer['error'].get('message', answer['error'])}", code=FAILED)
    click.echo(answer["choices"][0]["message"]["content"].strip())
    timings = answer["timings"]
    say(
        f"prompt {timings['prompt_n']} tokens at {timings['prompt_per_second']:.0f} tok/s, "
        f"answer {timings['predicted_n']} tokens at {timings['predicted_per_second']:.0f} tok/s"
    )


@sandbox_group.command()
@_name
def shell(name: str) -> None:
    """Open a shell in the sandbox.

    \b
    Example:
        moehost sandbox shell
    """
    if sandbox.state(name) != "running":
        stop(f"{name} does not run; start it with `moehost sandbox up`")
    sandbox.shell(name)


def run() -> None:
    """The console script: a user's mistake, or this computer's, is one line."""
    try:
        main()
    except sandbox.SandboxError as error:
        stop(str(error), code=FAILED)
