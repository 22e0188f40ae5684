"""What the demo shows, scene by scene. Each checks that what was shown really ended so."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import time
from pathlib import Path
from urllib.parse import urlsplit

from choreo.errors import ChoreoError
from choreo.messages.records import SagaCompensated, SagaCompleted, StepCompensated, StepCompleted
from deploy.run_procfile import ROOT, ProcessError, Processes, executable
from services.demo.audit import audit, read_databases
from services.demo.log import read_histories
from services.demo.screen import Screen
from services.demo.stage import SceneError, Stage, duration_ms, open_stage, outcome_of, watch
from services.order import ORDER, OrderInput, Trouble

CARRIER_SECONDS = 1.5  # long enough to be killed in, short enough to wait for


async def play(processes: Processes, url: str, directory: Path, screen: Screen, *, keep: bool) -> int:
    """All scenes. Returns the exit status."""
    began = time.monotonic()
    screen.scene("choreo demo", _described(url))
    failed = False
    async with open_stage(processes, url, directory, screen, secrets.token_hex(2)) as stage:
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(watch(processes), name="watch")]
                await services_come_up(stage)
                await stage.follower.open()
                background.append(tasks.create_task(stage.follower.run(), name="follow"))
                await orders_end_well_and_badly(stage)
                undone_id = await everything_is_undone_in_reverse(stage)
                await a_process_is_killed(stage)
                await the_log_tells_it_all(stage, undone_id, url)
                await the_databases_agree(stage)
                screen.scene(f"All ended as it should, in {time.monotonic() - began:.1f} s. Where to look next:")
                where_to_look_next(stage, url, undone_id, keep=keep)
                for task in background:
                    task.cancel()
        except* (SceneError, ProcessError, ChoreoError) as errors:
            failed = True
            for error in errors.exceptions:
                screen.failure(str(error))
    return 1 if failed else 0


async def services_come_up(stage: Stage) -> None:
    """Each process with the command that anybody can run."""
    stage.screen.scene("1. Five processes: the saga-log, and a service for each part of an order")
    began = time.monotonic()
    stage.processes.start()
    names = list(stage.processes.commands)
    await asyncio.gather(*(stage.ready(name) for name in names))
    rows = [
        (
            name,
            str(stage.processes.pid(name)),
            shlex.join(stage.processes.commands[name]),
            str(stage.processes.ports[name]),
        )
        for name in names
    ]
    stage.screen.table(("process", "pid", "command", "http port"), rows)
    stage.screen.note(f"all ready after {time.monotonic() - began:.1f} s")


async def orders_end_well_and_badly(stage: Stage) -> None:
    """A handful side by side: five that complete, and two that are refused half-way."""
    stage.screen.scene("2. Seven orders at once", "One meets a gateway that fails twice; two are refused.")
    orders = {
        **{f"order-{number}": (OrderInput(quantity=number), "") for number in range(1, 5)},
        "flaky-gateway": (OrderInput(trouble=Trouble(gateway_failures=2)), ""),
        "sold-out": (OrderInput(item="unobtainium"), "out_of_stock"),
        "declined": (OrderInput(card="tok_declined"), "card_declined"),
    }
    ids = [await stage.start(name, order) for name, (order, _) in orders.items()]
    for saga_id, (name, (_, code)) in zip(ids, orders.items(), strict=True):
        outcome = await stage.outcome(saga_id)
        took = f"{duration_ms(stage.history(saga_id)):>5} ms"
        if isinstance(outcome, SagaCompleted):
            attempts = max(
                line.record.attempts for line in stage.history(saga_id) if isinstance(line.record, StepCompleted)
            )
            again = f"   charged at attempt {attempts}" if attempts > 1 else ""
            stage.screen.note(f"{saga_id:<20} completed    {took}{again}", "green")
            found = ""
        else:
            found = outcome.failure.code if outcome.failure else "cancelled"
            undone = ", ".join(_undone(outcome)) or "nothing to undo"
            stage.screen.note(f"{saga_id:<20} compensated  {took}   {found} <- {undone}", "magenta")
        if found != code:
            raise SceneError(f"{name} ended with {found or 'success'}, expected {code or 'success'}")


async def everything_is_undone_in_reverse(stage: Stage) -> str:
    """The last step fails, so all before it are undone, last first. The records are shown as they land."""
    stage.screen.scene(
        "3. The last step fails: everything is undone in reverse",
        "The topic, live: '->' forward, '<-' back, which the saga-log commands.",
    )
    saga_id = await stage.start("depot-closed", OrderInput(trouble=Trouble(depot_closed=True)), show=True)
    outcome = await stage.outcome(saga_id)
    if not isinstance(outcome, SagaCompensated):
        raise SceneError(f"{saga_id} completed, although the depot is closed")
    undone = _undone(outcome)
    for step in undone:
        standing = [other for other in ORDER.graph.descendants[step] if other in undone[undone.index(step) :]]
        if standing:
            raise SceneError(f"{step} was undone before {', '.join(standing)}")
    if set(undone) != {step.name for step in ORDER.steps} - {"hand_over"}:
        raise SceneError(f"only {', '.join(undone)} were undone")
    return saga_id


async def a_process_is_killed(stage: Stage) -> None:
    """SIGKILL in the middle of a handler that has already booked: after the restart it must not book again."""
    stage.screen.scene(
        "4. kill -9, in the middle of a handler",
        f"The carrier takes {CARRIER_SECONDS} s; shipping dies after it has booked, before it says so.",
    )
    saga_id = await stage.start("killed", OrderInput(trouble=Trouble(carrier_seconds=CARRIER_SECONDS)), show=True)

    def booked() -> bool:
        return stage.rows(saga_id, "bookings", "shipping") == 1

    async with asyncio.timeout(30):
        while not booked():  # noqa: ASYNC110 -- a row in another process's database wakes nobody
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # well inside the handler
    pid = stage.processes.pid("shipping")
    stage.processes.kill("shipping")
    records = [line.record for line in stage.history(saga_id)]
    if any(isinstance(record, StepCompleted) and record.step == "book_carrier" for record in records):
        raise SceneError("the carrier had confirmed before the process was killed")
    stage.screen.note(f"           kill -9 {pid}: shipping is dead, its booking stands", "bold red")
    stage.processes.start("shipping")
    took = await stage.ready("shipping")
    stage.screen.note(f"           started again; its predecessor's lease ran out after {took:.1f} s", "bold")
    outcome = await stage.outcome(saga_id)
    if not isinstance(outcome, SagaCompleted):
        raise SceneError(f"{saga_id} did not complete after the restart")
    if not booked():
        raise SceneError("the carrier was booked twice")
    stage.screen.note("           ran twice, booked once: found by its idempotency key", "bold")


async def the_log_tells_it_all(stage: Stage, saga_id: str, url: str) -> None:
    """The same history by the command that anybody can run."""
    command = ["choreo", "replay", "services.order:ORDER", "--saga", saga_id, "--broker", url]
    stage.screen.scene("5. The log is the truth: fold it again", f"$ {_named(shlex.join(command))}")
    process = await asyncio.create_subprocess_exec(
        *executable(command),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**stage.processes.environment, "COLUMNS": str(stage.screen.console.width)},
    )
    output, _ = await process.communicate()
    stage.screen.console.print(output.decode().rstrip(), markup=False)
    if process.returncode != 0:
        raise SceneError(f"choreo replay ended with status {process.returncode}")


async def the_databases_agree(stage: Stage) -> None:
    """A table of all sagas, and the services' databases held against the log."""
    stage.screen.scene("6. What has become of each")
    rows = []
    for saga_id in stage.started:
        history = stage.history(saga_id)
        outcome = outcome_of(history)
        records = [line.record for line in history]
        completed = {record.step for record in records if isinstance(record, StepCompleted)}
        undone = {record.step for record in records if isinstance(record, StepCompensated) and record.undone}
        ended = f"compensated: {outcome.step}" if isinstance(outcome, SagaCompensated) else "completed"
        steps = f"{len(completed)} of {len(ORDER.steps)}"
        rows.append((saga_id, ended, steps, str(len(undone)), str(duration_ms(history))))
    stage.screen.table(("saga", "outcome", "steps", "compensations", "ms"), rows)
    stage.screen.scene("7. The services' own databases, held against the log")
    findings = audit(await read_histories(stage.broker), read_databases(stage.directory), saga_ids=stage.started)
    stage.screen.note(findings.counts)
    if findings.problems:
        raise SceneError("; ".join(findings.problems))
    stage.screen.note("every effect of a completed saga stands once; every other was undone once", "green")


def where_to_look_next(stage: Stage, url: str, saga_id: str, *, keep: bool) -> None:
    """Commands to copy, of those that work now."""
    broker = _named(url)
    if keep:
        for name in stage.processes.commands:
            stage.screen.note(f"{name:<13} {_metrics_url(stage, name)}")
        stage.screen.note(f"{'dashboard':<13} http://127.0.0.1:{stage.processes.ports['saga-log']}", "bold")
        stage.screen.note(
            f'$ choreo start services.order:ORDER \'{{"card": "tok_declined"}}\' --wait --broker {broker}'
        )
    if keep or urlsplit(url).scheme == "sqlite":
        stage.screen.note(f"$ choreo status order {saga_id} --broker {broker}")
        stage.screen.note(f"$ choreo replay order --broker {broker}")
    stage.screen.note("$ choreo describe services.order:ORDER")
    if not keep:
        stage.screen.note("$ choreo demo --keep             the same, and everything keeps running, its dashboard too")
    stage.screen.note("$ choreo demo --broker kafka     the same on a real Kafka")
    stage.screen.note("services/order/contract.py is the saga, services/payment/steps.py is what a service looks like")
    stage.screen.note(f"logs of the processes: {_named(str(stage.directory / 'logs'))}")


def _described(url: str) -> str:
    if urlsplit(url).scheme == "sqlite":
        return f"Broker: the embedded one, a SQLite file that processes share ({_named(url)}); not for production."
    return f"Broker: Apache Kafka at {url}."


def _named(text: str) -> str:
    """A path or URL of this checkout as a person in it would write it."""
    return text.replace(f"{ROOT}/", "")


def _metrics_url(stage: Stage, name: str) -> str:
    return f"http://127.0.0.1:{stage.processes.ports[name]}/metrics"


def _undone(outcome: SagaCompensated) -> list[str]:
    return [one.step for one in outcome.compensations if one.how == "undone"]
