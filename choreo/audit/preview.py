"""What a cancel would do, played out on a copy of the state with the fold that would decide it.

The cancel is folded as if it came now. Then everybody answers: what is in flight completes, so that all that could have
to be undone is shown (but a pivot is refused, since behind it nothing would be); every compensation undoes its effect.
What the fold then decides, wave by wave, is the order of undoing.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from choreo.contract.saga import Saga
from choreo.core import Entry, SagaState, fold, record_of
from choreo.core.state import Key
from choreo.messages.records import (
    AnyRecord,
    CancelRequested,
    Compensate,
    Execute,
    Failure,
    StepCompensated,
    StepCompleted,
    StepFailed,
)

_WAVES_MAX = 10_000  # more than any contract has steps and rounds


class Undoing(msgspec.Struct, frozen=True, kw_only=True):
    """A step that a cancel would undo.

    Attributes:
        wave: 1, 2, …: those of one wave are undone side by side, a wave when all before it are.
        compensation: its name in the contract.
        certain: it stands now. Otherwise it is in flight, and is undone only if it turns out to leave an effect.
    """

    wave: int
    step: str
    round: int
    compensation: str
    certain: bool


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A step whose effect a cancel would leave standing, and why."""

    step: str
    round: int
    why: Literal["no_compensation", "past_pivot", "stuck"]


class CancelPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a cancel would do now.

    Attributes:
        verdict: ``undone``: the saga goes back; ``refused``: it would be recorded and change nothing; ``deferred``:
            the pivot's outcome decides; ``going_back``: it is on its way back already; ``nothing``: no effect stands.
        why: in words.
        settles: steps in flight, whose outcome is awaited before the way back begins.
        undo: what would be undone, in order.
        keeps: what would not.
    """

    saga: str
    saga_id: str
    verdict: Literal["undone", "refused", "deferred", "going_back", "nothing"]
    why: str
    settles: tuple[str, ...] = ()
    undo: tuple[Undoing, ...] = ()
    keeps: tuple[Kept, ...] = ()


def preview_cancel(contract: Saga, state: SagaState) -> CancelPreview:
    """What a cancel would do to a saga in that state."""
    about: dict[str, Any] = {"saga": contract.name, "saga_id": state.saga_id}
    if not state.started:
        why = "its start is not in the log" if state.truncated else "it has not started; its start would be undone"
        return CancelPreview(**about, verdict="nothing", why=why)
    if state.outcome is not None:
        return CancelPreview(**about, verdict="refused", why=f"the saga has {state.outcome.kind}")
    standing = sorted(state.standing.items(), key=lambda item: list(contract.graph.before).index(item[0]))
    past = tuple(Kept(step=step, round=saga_round, why="past_pivot") for step, saga_round in standing)
    if state.pivot == "passed":
        return CancelPreview(**about, verdict="refused", why="the saga is past its pivot", keeps=past)
    back = state.failing and state.pivot == ""
    undo, keeps = _play(contract, state)
    settles = tuple(dict.fromkeys(step for (step, _), one in state.instances.items() if one.in_flight))
    if state.pivot == "open":
        return CancelPreview(
            **about,
            verdict="deferred",
            why="the pivot is in flight: if it completes, the cancel is refused; what is shown is if it fails",
            settles=settles,
            undo=undo,
            keeps=keeps,
        )
    verdict: Literal["undone", "going_back", "nothing"] = "going_back" if back else "undone" if undo else "nothing"
    why = {
        "going_back": "it is on its way back already; a cancel would forbid to go forward again",
        "undone": "what stands is undone in this order",
        "nothing": "nothing stands that has a compensation",
    }[verdict]
    return CancelPreview(**about, verdict=verdict, why=why, settles=settles, undo=undo, keeps=keeps)


def _play(contract: Saga, state: SagaState) -> tuple[tuple[Undoing, ...], tuple[Kept, ...]]:
    """Fold the cancel and all the answers to what it leads to."""
    certain = {key for key, one in state.instances.items() if not one.in_flight}
    stuck = {key for key, one in state.instances.items() if one.stuck}
    state = fold(contract, state, _entry(state, _cancel(contract, state))).state
    undo: list[Undoing] = []
    wave = 0
    for _ in range(_WAVES_MAX):
        if in_flight := [key for key, one in state.instances.items() if one.in_flight]:
            for key in in_flight:
                # Of a pivot the case that is worth showing is that it has not happened.
                outcome = _rejection if contract[key[0]].pivot else _completion
                state = _answer(contract, state, outcome(contract, state, key))
            continue
        awaited = [key for key, one in state.instances.items() if one.awaits_answer]
        if not awaited:
            break
        wave += 1
        for step, saga_round in awaited:
            compensation = contract[step].compensation or ""
            undo.append(
                Undoing(
                    wave=wave,
                    step=step,
                    round=saga_round,
                    compensation=compensation,
                    certain=(step, saga_round) in certain,
                )
            )
        for key in awaited:
            state = _answer(contract, state, _compensation(contract, state, key))
    keeps = [
        Kept(step=one.step, round=one.round, why="no_compensation")
        for one in state.undone
        if one.how == "no_compensation"
    ]
    keeps += [Kept(step=step, round=saga_round, why="stuck") for step, saga_round in sorted(stuck)]
    return tuple(undo), tuple(keeps)


def _answer(contract: Saga, state: SagaState, record: AnyRecord) -> SagaState:
    for decision in state.owed:  # what is decided has to be said before it can be answered
        said = record_of(contract, state, decision)
        if isinstance(said, Execute | Compensate):
            state = fold(contract, state, _entry(state, said)).state
    return fold(contract, state, _entry(state, record)).state


def _about(contract: Saga, state: SagaState, key: Key | None = None) -> dict[str, Any]:
    start, wire_round = (state.start, 1) if key is None else state.wire_round(key[1])
    about = {"saga": contract.name, "version": contract.version, "saga_id": state.saga_id, "start": start}
    return about if key is None else about | {"step": key[0], "round": wire_round}


def _cancel(contract: Saga, state: SagaState) -> CancelRequested:
    return CancelRequested(**_about(contract, state), request="preview")


def _completion(contract: Saga, state: SagaState, key: Key) -> StepCompleted:
    nothing = msgspec.Raw(b"null" if state.content_type == "application/json" else b"\xc0")
    return StepCompleted(
        **_about(contract, state, key),
        run="preview",
        due_ms=2**53,
        saga_due_ms=2**53,
        input=nothing,
        effects={},
        effect=nothing,
    )


def _rejection(contract: Saga, state: SagaState, key: Key) -> StepFailed:
    failure = Failure(kind="rejected")
    return StepFailed(**_about(contract, state, key), run="preview", failure=failure, effect="none")


def _compensation(contract: Saga, state: SagaState, key: Key) -> StepCompensated:
    generation = state.instance(key).generation
    return StepCompensated(**_about(contract, state, key), generation=generation, run="preview", undone=True)


def _entry(state: SagaState, record: AnyRecord) -> Entry:
    return Entry(record, state.offset + 1, state.updated_ms, state.content_type)
