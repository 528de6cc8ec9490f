"""`moehost bench`: how fast a server is, measured by requests, with a report of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from moehost import cli_report, fingerprint, results, runs, services, settings
from moehost.bench import Job
from moehost.benching import here, there
from moehost.client import first_key
from moehost.runs import Run, RunsError, Session
from moehost.settings import Service
from moehost.terminal import FAILED, ask_host, say, stop

FACT = "roles.bench.facts.Served"
INTERRUPTED = 130


@dataclass(frozen=True)
class Target:
    """What is measured, and where its results are kept.

    + service: None for an address
    + names: of the host, which no report says
    """

    url: str
    series: Path
    service: Service | None = None
    names: tuple[str, ...] = ()
    fingerprint: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int]:
    if value is None:
        return []
    if not re.fullmatch(r"\d{1,7}(,\d{1,7})*", value) or "0" in value.split(","):
        raise click.BadParameter(f"{value!r} is no list of tokens; write e.g. 512,4096")
    return [int(each) for each in value.split(",")]


@click.command()
@click.argument("target", metavar="URL|@HOST")
@click.option("--service", help="With @HOST: the service; not needed where there is only one.")
@click.option(
    "--runs", "count", type=click.IntRange(1, 10000), default=28, show_default=True, help="Runs that count."
)
@click.option("--lengths", callback=_numbers, help="Tokens of the prompts; chosen up to 16k if not given.")
@click.option("--depth", "depths", callback=_numbers, help="Further, longer prompts: for contexts beyond 16k.")
@click.option(
    "--answer-tokens", type=click.IntRange(2, 100000), default=512, show_default=True, help="Of each answer."
)
@click.option("--warm-ups", type=click.IntRange(0, 20), default=2, show_default=True, help="Runs that don't count.")
@click.option("--seed", default=0, show_default=True, help="Decides the order of the runs, and their texts.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(1), default=1800.0, show_default=True, help="Seconds.")
@click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="For a URL.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder; below results/ if not given.")
@click.option("--resume", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Go on with a folder.")
@click.option("--against", help="`last`, or a folder: end with 1 where this one is slower than that.")
@click.option("--tolerance", type=click.FloatRange(0, 0.5), help="With --against: what counts as nothing, e.g. 0.03.")
@click.option("--need-decode", "decode_tok_s", type=click.FloatRange(0), help="Tokens per second for daily use.")
@click.option("--need-first-token-1k", "first_token_1k_s", type=click.FloatRange(0), help="Seconds, 1k prompt.")
@click.option("--need-first-token-16k", "first_token_16k_s", type=click.FloatRange(0), help="Seconds, 16k prompt.")
@click.option("--json", "as_json", is_flag=True, help="The summary, for programs.")
@click.option("--inventory", default="inventory", show_default=True, help="Where @HOST is looked up.")
def bench(
    target: str,
    service: str | None,
    count: int,
    timeout_s: float,
    api_key_file: Path | None,
    out: Path | None,
    resume: Path | None,
    against: str | None,
    tolerance: float | None,
    decode_tok_s: float | None,
    first_token_1k_s: float | None,
    first_token_16k_s: float | None,
    as_json: bool,
    inventory: str,
    **asked: Any,
) -> None:
    """Measure a server by requests: 28 runs of seven prompt lengths after two that don't count, and a report.

    URL is any llama-server, or a server with OpenAI's API; with @HOST the node asks its own service, and plan,
    hardware and software go into the report. Ctrl-C keeps what was measured. Ends with 1 where nothing could be
    measured or --against finds it slower, 2 on bad input.

    \b
    Example:
        moehost bench @epyc.home.arpa
        moehost bench @epyc.home.arpa --against last || moehost engine rollback @epyc.home.arpa
        moehost bench http://127.0.0.1:8080 --api-key-file key --lengths 512,4096 --runs 8
        moehost bench --resume results/epyc.home.arpa/qwen/2026-11-29T18-00-00Z @epyc.home.arpa
    """
    from moehost import report  # scipy and matplotlib take a second, which the other commands don't need

    found = _target(target, service, inventory)
    before = _before(resume)
    job = Job(found.url, runs=count, timeout_s=timeout_s, **asked)
    if before:
        job = _resumed(job, before)
    folder = resume or out or results.new(found.series)
    baseline = _baseline(against, found.series, folder)
    if (folder / runs.FILE).exists() and not resume:
        stop(f"--out: {folder} has a benchmark; name another folder, or go on with it by --resume {folder}")
    needs = _needs(
        found.service.daily_use if found.service else None, decode_tok_s, first_token_1k_s, first_token_16k_s
    )
    session, why = _measured(found, job, before, folder, api_key_file, target, inventory)
    if not session.measured:
        stop(f"{target}: {why or 'nothing was measured'}", code=FAILED)
    summary = report.write(session, folder, needs, found.names)
    if as_json:
        click.echo(json.dumps(summary.to_json(), indent=2))
    else:
        for line in [*report.lengths_table(summary), "", *report.findings(summary)]:
            click.echo(line)
    say(f"the report is {folder / 'report.html'}")
    if why:
        missing = f"{len(session.measured)} of {session.order['runs']} runs; go on with --resume {folder}"
        stop(f"{why}: {missing}", code=INTERRUPTED if why == STOPPED else FAILED)
    if baseline:
        _judge(baseline, session, tolerance)


STOPPED = "stopped"


def _target(text: str, service: str | None, inventory: str) -> Target:
    """What is meant by URL or @HOST."""
    if "://" in text:
        if service:
            stop("--service: belongs to @HOST; an address has one server")
        return Target(text, results.series(text.partition("://")[2]))
    if not text.startswith("@"):
        stop(f"{text}: write an address such as http://127.0.0.1:8080, or a host as @{text}")
    chosen = services.choose(text, service, inventory)
    wanted, name = chosen.service, chosen.host
    folder = f"{chosen.node.models_dir}/{wanted.model.name}"
    texts, why = ask_host(name, inventory, FACT, service=wanted.name, model_dir=folder)
    if not texts or not any(texts.values()):
        stop(f"{text}: can't be asked: {why or 'it gave no answer'}", code=FAILED)
    if texts["state"].strip() != "active":
        stop(f"{text}: {wanted.unit} is {texts['state'].strip()}; deploy first", code=FAILED)
    if texts["benching"].strip() in ("active", "activating"):
        stop(f"{text}: a benchmark is at work there; wait, or end it by `systemctl stop moehost-bench`", code=FAILED)
    return Target(
        url=f"http://{wanted.url_host}:{wanted.port}",
        series=results.series(name, wanted.name),
        service=wanted,
        names=(name, name.partition(".")[0], str(chosen.data.get("ssh_hostname", ""))),
        fingerprint=fingerprint.of_node(texts),
        plan=fingerprint.plan_of(texts),
    )


def _before(folder: Path | None) -> Session | None:
    """The benchmark that is gone on with."""
    if folder is None:
        return None
    try:
        return results.load(folder)
    except RunsError as error:
        stop(f"--resume: {error}")


def _resumed(job: Job, before: Session) -> Job:
    """The rest of a benchmark: its own order counts, whatever else is asked for."""
    kept = {key: before.order[key] for key in ("runs", "lengths", "answer_tokens", "warm_ups", "seed")}
    done = [[run.block, run.prompt_tokens] for run in before.measured]
    if len(done) == kept["runs"]:
        stop("--resume: all its runs are there; begin another one without --resume")
    return Job(**{**asdict(job), **kept, "depths": [], "done": done})


def _baseline(against: str | None, series: Path, folder: Path) -> Session | None:
    if against is None:
        return None
    path = results.last(series, folder) if against == "last" else Path(against)
    if path is None:
        say(f"--against last: there is none in {series} yet; this one is the first")
        return None
    try:
        return results.load(path)
    except RunsError as error:
        stop(f"--against: {error}")


def _needs(own: settings.DailyUse | None, *given: float | None) -> Any:
    """What daily use needs: as it was said, else as the service's settings have it, else what most people need."""
    from moehost.daily_use import Needs

    names = ("decode_tok_s", "first_token_1k_s", "first_token_16k_s")
    settled = own.model_dump() if own else {}
    said = {key: value for key, value in zip(names, given, strict=True) if value is not None}
    return Needs(**{**settled, **said})


def _measured(
    found: Target, job: Job, before: Session | None, folder: Path, key_file: Path | None, target: str, inventory: str
) -> tuple[Session, str]:
    """The benchmark, kept run by run while it is made; and why it is not whole, if it is not."""
    threshold = ((found.plan or {}).get("prediction") or {}).get("offload_tokens")
    job = Job(**{**asdict(job), "threshold": threshold})
    source = here(job, _key(key_file)) if found.service is None else there(job, found.service.name, target, inventory)
    done: list[Run] = list(before.runs) if before else []
    session, why = before or Session({"runs": job.runs}), ""
    try:
        with source as lines, _progress() as progress:
            task = progress.add_task("warms up", total=job.runs, completed=len(job.done), left="")
            for line in lines:
                data = json.loads(line)
                if "refusal" in data:
                    why = data["refusal"]
                elif "order" in data:
                    session = _opened(data, found, before, folder)
                else:
                    run = Run(**data)
                    done.append(run)
                    with (folder / runs.FILE).open("a", encoding="utf-8") as file:
                        file.write(runs.line(run))
                    _show(progress, task, run, done, session)
    except KeyboardInterrupt:
        why = STOPPED
    return Session(session.order, session.fingerprint, session.plan, tuple(done)), why


def _opened(data: dict[str, Any], found: Target, before: Session | None, folder: Path) -> Session:
    """Begin a file, or go on with one that is of the same server."""
    facts = {**data["server"], **(found.fingerprint or {})}
    if before is None:
        session = Session(data["order"], facts, found.plan)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / runs.FILE).write_text("".join(runs.lines(session)), encoding="utf-8")
        return session
    changed = [key for key in {**facts, **before.fingerprint} if facts.get(key) != before.fingerprint.get(key)]
    if changed:
        stop(f"--resume: {folder} was measured with another {', '.join(changed)}; begin another benchmark")
    return before


def _key(file: Path | None) -> str:
    if file is None:
        return ""
    key = first_key(file.read_text())
    if key is None:
        stop(f"--api-key-file: {file} has no key in it")
    return key


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _show(progress: Progress, task: Any, run: Run, done: list[Run], session: Session) -> None:
    count = sum(each.kind == "measured" for each in done)
    text = f"{run.prompt_tokens} tokens: "
    if run.kind in ("discarded", "failed"):
        text += f"{run.kind}, {run.reason}"
        progress.console.print(f"moehost: {text}", highlight=False)
    else:
        text += f"prompt {run.prompt_tok_s:.0f}, answer {run.decode_tok_s:.1f} tok/s"
    left_s = _left_s(done, session)
    left = f"about {left_s / 60:.0f} min left" if left_s >= 90 else f"about {left_s:.0f} s left"
    progress.update(task, completed=count, description=text, left=left)
    if not progress.console.is_terminal and run.kind == "measured":
        say(f"{count} of {session.order['runs']}: {text}; {left}")


def _left_s(done: list[Run], session: Session) -> float:
    """How long the rest takes: the time of a run grows with its prompt, from the shortest seen to the longest."""
    seen = sorted((run.prompt_tokens, run.total_s) for run in done if run.kind in ("warm_up", "measured"))
    if not seen:
        return 0.0
    made = Counter(run.prompt_tokens for run in done if run.kind == "measured")
    each = int(session.order["runs"]) / len(session.order["lengths"])
    (least, least_s), (most, most_s) = seen[0], seen[-1]
    per_token_s = (most_s - least_s) / (most - least) if most > least else 0.0
    lengths: list[int] = session.order["lengths"]
    return sum(max(0.0, each - made[length]) * (least_s + (length - least) * per_token_s) for length in lengths)


def _judge(before: Session, after: Session, tolerance: float | None) -> None:
    """Say whether it is slower than before, and end with 1 where it is."""
    from moehost import comparison

    try:
        found = comparison.compare(before, after, comparison.TOLERANCE if tolerance is None else tolerance)
    except comparison.ComparisonError as error:
        stop(f"--against: {error}")
    for line in [*cli_report.since(before, after), *cli_report.lines(found)]:
        say(line)
    if found.verdict == "slower":
        stop(f"slower than before, by more than {found.tolerance:.0%}", code=FAILED)
