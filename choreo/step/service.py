"""A service: the steps it runs, of any number of sagas and versions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from choreo.contract.policy import Duration, duration_ms
from choreo.contract.saga import Saga, StepSpec
from choreo.errors import DefinitionError
from choreo.inbox import Inbox
from choreo.step.context import BaseContext, CompensationContext, Context
from choreo.step.handler import Handler
from choreo.step.hook import Callback, Hook, problems_of_callback
from choreo.step.retried import ALWAYS, ExceptionTypes, retried
from choreo.step.tracers import problems_of_tracer
from choreo.step.verdict import InvalidInput, Reject

SERVICE_NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,99}\Z"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Hosted:
    """A step that a service runs."""

    saga: Saga
    step: StepSpec
    handler: Handler
    compensation: Handler | None


class Service:
    """Names the handlers of a service. Building it touches nothing; ``StepRuntime`` runs it.

        payment = Service("payment")

        @payment.step(ORDER, "charge_card")
        async def charge(order: OrderInput, ctx: Context) -> Charge: ...

        @payment.compensation(ORDER, "charge_card")
        def refund(ctx: CompensationContext) -> None: ...

    Bind the same function to each version of a contract that the service still serves. A step belongs to one
    service: two services (two consumer groups) that host the same step would both run it, and no rule of the
    protocol would notice.

    Attributes:
        name: names the consumer group ``choreo.<name>`` and the source ``/choreo/<name>`` of its records.
        inbox: where its handlers' outcomes are recorded; ``None`` if nowhere.
    """

    def __init__(self, name: str, *, inbox: Inbox | None = None, tracers: Iterable[object] = ()) -> None:
        """Begin a service.

        Args:
            inbox: the recommended way: outcomes are recorded in the service's own database, in one transaction with
                the effects of the handlers that ask for a ``Session`` or ``Connection``.
            tracers: as for ``trace``.

        Raises:
            DefinitionError: the name cannot be part of a group's name, or a tracer is none.
        """
        if not re.match(SERVICE_NAME_PATTERN, name):
            raise DefinitionError(f"service {name!r}", (f"its name must match {SERVICE_NAME_PATTERN}",))
        self.name = name
        self.inbox = inbox
        self._contracts: dict[tuple[str, int], Saga] = {}
        self._handlers: dict[tuple[str, int, str], Handler] = {}
        self._compensations: dict[tuple[str, int, str], Handler] = {}
        self._outcome_hooks: dict[str, dict[str, Hook]] = {}
        self._error_handlers: dict[str, Callback] = {}
        self._tracers: list[object] = []
        for tracer in tracers:
            self.trace(tracer)

    @property
    def group(self) -> str:
        return f"choreo.{self.name}"

    @property
    def source(self) -> str:
        return f"/choreo/{self.name}"

    @property
    def contracts(self) -> Mapping[tuple[str, int], Saga]:
        """The contracts it holds, by name and version."""
        return self._contracts

    def step(
        self,
        saga: Saga,
        step: str,
        *,
        retry_on: ExceptionTypes = ALWAYS.on,
        never_retry: ExceptionTypes = ALWAYS.never,
    ) -> Callable[[F], F]:
        """Run the decorated function, sync or async, for this step. See ``handler`` for its parameters.

        It returns the step's effect, and may raise ``Reject`` or ``Abort``.

        Args:
            saga: the contract, in one version.
            step: its name there. The contract says how often it is retried.
            retry_on: exceptions that are; everything by default. A cancelled attempt is a ``TimeoutError``.
            never_retry: exceptions that are not, though they are in ``retry_on``: the step fails at once, as crashed.

        Raises:
            DefinitionError: with all problems found.
        """
        return self._bind(saga, step, self._handlers, Context, retry_on, never_retry)

    def compensation(
        self,
        saga: Saga,
        step: str,
        *,
        retry_on: ExceptionTypes = ALWAYS.on,
        never_retry: ExceptionTypes = ALWAYS.never,
    ) -> Callable[[F], F]:
        """Run the decorated function, sync or async, to undo this step.

        It returns ``None``, ``NothingToUndo``, ``Retry``, ``Continue`` or ``AbortRetries``. The arguments are those
        of ``step``; an exception that is not retried is a failed compensation at once.

        Raises:
            DefinitionError: with all problems found.
        """
        return self._bind(saga, step, self._compensations, CompensationContext, retry_on, never_retry)

    def on_outcome(self, saga: Saga, *, name: str | None = None, timeout: Duration = "30s") -> Callable[[F], F]:
        """Run the decorated function, sync or async, when a saga completed or was compensated.

            @audit.on_outcome(ORDER)
            async def file(event: OutcomeEvent) -> None: ...

        It runs at least once for each outcome, in whatever version of the saga. What it raises is logged, counted in
        ``choreo_observer_errors_total`` and ignored. A service may have nothing else.

        Args:
            saga: the contract, in any version.
            name: tells the hooks of a saga from each other; the function's by default.
            timeout: bound of one call.

        Raises:
            DefinitionError: with all problems found.
        """

        def decorate(function: F) -> F:
            hook_name = str(name or getattr(function, "__qualname__", type(function).__qualname__))
            problems = [*self._problems_of_contract(saga), *problems_of_callback(function, "an OutcomeEvent")]
            timeout_ms = 0
            try:
                timeout_ms = duration_ms(timeout)
            except (TypeError, ValueError) as error:
                problems.append(f"timeout: {error}")
            bound = self._outcome_hooks.get(saga.name, {}).get(hook_name)
            if bound is not None and bound.function is not function:
                problems.append(f"another hook of saga {saga.name!r} has this name; give one of them a name=")
            if problems:
                raise DefinitionError(f"service {self.name!r}: outcome hook {hook_name!r}", tuple(problems))
            self._contracts[saga.name, saga.version] = saga
            hook = Hook(function, hook_name, timeout_ms / 1_000)
            self._outcome_hooks.setdefault(saga.name, {})[hook_name] = hook
            return function

        return decorate

    @property
    def outcome_hooks(self) -> Mapping[str, Mapping[str, Hook]]:
        """What runs on outcomes, by saga and name."""
        return self._outcome_hooks

    def on_compensation_error(self, saga: Saga) -> Callable[[F], F]:
        """Ask the decorated function, sync or async, when a compensation of this service has failed in all attempts.

        It gets a ``CompensationError`` and answers ``RetryLater``, ``Resolved`` or ``Stuck`` (or ``None``), within the
        step's ``timeout``. If it fails itself the saga is stuck, as without it. One for all versions of a saga.

        Raises:
            DefinitionError: with all problems found.
        """

        def decorate(function: F) -> F:
            problems = [*self._problems_of_contract(saga), *problems_of_callback(function, "a CompensationError")]
            bound = self._error_handlers.get(saga.name)
            if bound is not None and bound.function is not function:
                problems.append(f"saga {saga.name!r} has another one already")
            if problems:
                raise DefinitionError(f"service {self.name!r}: handler of compensation errors", tuple(problems))
            self._error_handlers[saga.name] = Callback(function)
            return function

        return decorate

    @property
    def error_handlers(self) -> Mapping[str, Callback]:
        """What is asked when a compensation has failed, by saga."""
        return self._error_handlers

    @property
    def tracers(self) -> Sequence[object]:
        """Those that watch the service, in the order in which they were added."""
        return tuple(self._tracers)

    def trace(self, tracer: object) -> None:
        """Let a tracer watch; ``choreo.observe.events`` says what that is.

        Several are told in order before an attempt, and in the opposite order after it.

        Raises:
            DefinitionError: it has no method of a tracer, one that cannot be called as it has to be, or it is added
                twice.
        """
        problems = problems_of_tracer(tracer)
        if any(tracer is other for other in self._tracers):
            problems.append("it watches this service already")
        if problems:
            subject = f"service {self.name!r}: tracer {type(tracer).__qualname__!r}"
            raise DefinitionError(subject, tuple(problems))
        self._tracers.append(tracer)

    def hosted(self, *, has_database: bool = False) -> Mapping[tuple[str, int, str], Hosted]:
        """All steps that it runs, by saga, version and step; none for a service that only has outcome hooks.

        Args:
            has_database: somebody else than an inbox gives handlers the database.

        Raises:
            DefinitionError: a handler is missing; the message lists all of them.
        """
        problems = [
            f"step {step!r} of saga {saga!r} version {version} has a compensation handler but no handler; "
            "both must be in one service, which keeps them in order"
            for saga, version, step in self._compensations
            if (saga, version, step) not in self._handlers
        ]
        hosted = {}
        for key, handler in self._handlers.items():
            saga, version, step = key
            contract = self._contracts[saga, version]
            compensation = self._compensations.get(key)
            if contract[step].compensation is not None and compensation is None:
                problems.append(
                    f"step {step!r} of saga {saga!r} version {version} needs a handler for its compensation "
                    f"{contract[step].compensation!r}; add one with @compensation"
                )
            problems += [
                f"handler {bound.name!r} of step {step!r} asks for the database in {', '.join(bound.unfilled)}, but "
                "the service has no inbox; say Service(…, inbox=Inbox(engine)), or give the parameter a default"
                for bound in (handler, compensation)
                if bound is not None and bound.unfilled and self.inbox is None and not has_database
            ]
            hosted[key] = Hosted(contract, contract[step], handler, compensation)
        if not hosted and not problems and not self._outcome_hooks:
            problems.append("it runs no steps; add one with @step")
        if problems:
            raise DefinitionError(f"service {self.name!r}", tuple(problems))
        return hosted

    def _bind(
        self,
        saga: Saga,
        step: str,
        handlers: dict[tuple[str, int, str], Handler],
        context_type: type[BaseContext[Any]],
        retry_on: ExceptionTypes,
        never_retry: ExceptionTypes,
    ) -> Callable[[F], F]:
        def decorate(function: F) -> F:
            key = (saga.name, saga.version, step)
            problems = self._problems(saga, step, is_compensation=context_type is CompensationContext)
            if step in saga and (child := saga[step].child) is not None:
                problems.append(f"the step is saga {child.saga!r}; bind its steps instead")
            if key in handlers:
                problems.append(f"step {step!r} of saga {saga.name!r} is already bound to {handlers[key].name!r}")
            decisions = (Reject, InvalidInput) if context_type is Context else (InvalidInput,)
            rule, wrong = retried(retry_on, never_retry, decisions)
            problems += wrong
            try:
                handler = Handler(function, context_type, rule)
            except DefinitionError as error:
                problems += error.problems
            else:
                problems += self._problems_with_inbox(handler)
            if problems:
                name = getattr(function, "__qualname__", repr(function))
                raise DefinitionError(f"service {self.name!r}: handler {name!r} of step {step!r}", tuple(problems))
            self._contracts[saga.name, saga.version] = saga
            handlers[key] = handler
            return function

        return decorate

    def _problems_with_inbox(self, handler: Handler) -> list[str]:
        if self.inbox is None:
            return []
        source = self.inbox.source
        found = (
            source.problem_with(name, resource, handler_is_async=handler.is_async)
            for name, resource in handler.resources
        )
        return [problem for problem in found if problem is not None]

    def _problems(self, saga: Saga, step: str, *, is_compensation: bool) -> list[str]:
        problems = self._problems_of_contract(saga)
        try:
            spec = saga[step]
        except DefinitionError as error:
            problems += error.problems
        else:
            if is_compensation and spec.compensation is None:
                problems.append(f"step {step!r} has no compensation in the contract; name one there: compensation='…'")
        return problems

    def _problems_of_contract(self, saga: Saga) -> list[str]:
        problems: list[str] = []
        held = self._contracts.get((saga.name, saga.version))
        if held is not None and held.content_hash != saga.content_hash:
            problems.append(
                f"saga {saga.name!r} version {saga.version} is held with another content ({held.content_hash[:12]}, "
                f"this one is {saga.content_hash[:12]}); give a changed contract a new version"
            )
        return problems
