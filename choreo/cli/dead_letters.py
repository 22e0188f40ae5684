"""``choreo dead-letters``: what could not be read, why, and how to have it read after all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import App, Parameter

from choreo.cli.exits import Exit, complain
from choreo.cli.options import AsJson, BrokerUrl, broker_url, write_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from choreo.broker import Broker
    from choreo.broker.dead_letter import DeadLetter, Redriven
    from choreo.client.dead_letters import Found, Wanted

T = TypeVar("T")

SagaName = Annotated[str, Parameter(help="The saga's name, as in order.")]
LetterId = Annotated[str, Parameter(help="partition/offset, as list prints it.")]
OfSaga = Annotated[str | None, Parameter(name="--saga-id", help="Only those under this saga's id.")]
OfReason = Annotated[
    str | None, Parameter(help="Only those refused for this: undecodable, unknown_contract or unknown_version.")
]
Since = Annotated[str | None, Parameter(help="Only those of the last 90s, 2h, 7d, or since 2026-01-31T12:00Z.")]

VALUE_BYTES_SHOWN = 4_096

dead_letters = App(
    name="dead-letters",
    help="What could not be read: list it, look at it, write it back when the cause is mended.",
    help_format="plaintext",
)


@dead_letters.command(name="list")
def list_letters(
    sagas: Annotated[list[SagaName] | None, Parameter(help="Names of sagas; all by default.")] = None,
    /,
    *,
    saga_id: OfSaga = None,
    reason: OfReason = None,
    since: Since = None,
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """List dead letters, the oldest first.

    Example: choreo dead-letters list order --reason undecodable --since 2h
    """
    from choreo.client.dead_letters import Wanted, find, sagas_with_dead_letters

    wanted = Wanted(saga_id=saga_id, reason=reason, since_ms=_since_ms(since))

    async def look(opened: Broker) -> list[Found]:
        names = sagas or await sagas_with_dead_letters(opened)
        return [each for name in names for each in await find(opened, name, wanted)]

    found = _with_broker(broker, look)
    for each in found:
        if as_json:
            write_json(each)
        else:
            again = f"  redriven {len(each.redriven)}x" if each.redriven else ""
            print(  # noqa: T201 - the command's output
                f"{each.saga} {each.id:<12} {_at(each.timestamp_ms)}  {each.reason:<16} "
                f"{escaped(each.saga_id)}  {escaped(each.message)[:160]}{again}"
            )
    if not as_json:
        complain(f"{len(found)} dead letter(s)")
    return Exit.DONE


@dead_letters.command
def show(saga: SagaName, letter: LetterId, *, broker: BrokerUrl = None, as_json: AsJson = False) -> int:
    """Show a dead letter: where it was, why it was refused, its headers and its bytes.

    Nothing of it reaches the terminal unescaped. With --json the value is whole, in Base64.

    Example: choreo dead-letters show order 3/4711
    """
    from choreo.client.dead_letters import Wanted, find, read

    async def look(opened: Broker) -> tuple[Found, DeadLetter]:
        [found] = await find(opened, saga, Wanted(ids=(letter,)))
        return found, await read(opened, found)

    found, whole = _with_broker(broker, look)
    if as_json:
        write_json({"letter": whole, "redriven": found.redriven, "decoded": _decoded(whole)})
    else:
        _print(whole, found.redriven)
    return Exit.DONE


@dead_letters.command
def redrive(
    saga: SagaName,
    letters: Annotated[
        list[LetterId] | None, Parameter(help="partition/offset of each; or say which by options.")
    ] = None,
    /,
    *,
    reason_given: Annotated[str, Parameter(name="--why", help="Why; it stays with the record.")],
    every: Annotated[bool, Parameter(name="--all", negative="", help="All that the filters leave.")] = False,
    saga_id: OfSaga = None,
    reason: OfReason = None,
    since: Since = None,
    yes: Annotated[bool, Parameter(negative="", help="Do it; without this, only say what would be done.")] = False,
    again: Annotated[bool, Parameter(negative="", help="Also those that were written back before.")] = False,
    operator: Annotated[str, Parameter(help="Who; the login name by default.")] = "",
    broker: BrokerUrl = None,
    as_json: AsJson = False,
) -> int:
    """Write dead letters back into their saga's topic, as they were, with who did it and why in their headers.

    Do it when the cause is mended: a service upgraded, a contract published. What still cannot be read is refused
    again. Exit code 1 if one of them was not written back.

    Example: choreo dead-letters redrive order 3/4711 --why "payment 2.1 reads it" --yes
    Example: choreo dead-letters redrive order --all --reason unknown_contract --since 1d --why "published" --yes
    """
    import getpass

    from choreo.client.dead_letters import Wanted
    from choreo.errors import ConfigurationError

    if not letters and not every:
        raise ConfigurationError("say which dead letters: partition/offset of each, or --all (with filters)")
    wanted = Wanted(ids=tuple(letters or ()), saga_id=saga_id, reason=reason, since_ms=_since_ms(since))
    who = operator or getpass.getuser()

    async def work(opened: Broker) -> int:
        return await _redrive(opened, saga, wanted, who, reason_given, yes=yes, again=again, as_json=as_json)

    return _with_broker(broker, work)


async def _redrive(
    broker: Broker, saga: str, wanted: Wanted, who: str, why: str, *, yes: bool, again: bool, as_json: bool
) -> int:
    from choreo.client.dead_letters import find, redrive
    from choreo.errors import NoSuchDeadLetter, NotRedriven, RecordTooLarge

    found = await find(broker, saga, wanted)
    left = 0
    for each in found:
        done: dict[str, Any] = {"saga": saga, "id": each.id, "saga_id": each.saga_id}
        if not yes:
            done |= {"would": "write it back" if again or not each.redriven else "refuse: it was written back before"}
        else:
            try:
                appended = await redrive(broker, each, by=who, why=why, again=again)
            except (NoSuchDeadLetter, NotRedriven, RecordTooLarge) as error:
                left += 1
                done |= {"refused": str(error)}
            else:
                done |= {"written_to": f"{appended.partition}/{appended.offset}"}
        if as_json:
            write_json(done)
        else:
            what = done.get("would") or done.get("refused") or f"written back, to {done['written_to']}"
            print(f"{saga} {each.id}  {escaped(each.saga_id)}  {escaped(what)}")  # noqa: T201
    if not yes:
        complain(f"nothing was done: {len(found)} dead letter(s) are meant. Add --yes to write them back")
    return Exit.NO if left else Exit.DONE


def escaped(text: str) -> str:
    """The text with all that a terminal could take for an order written out: controls, bidirectional marks."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode() for each in text
    )


def _with_broker(url: str | None, work: Callable[[Broker], Awaitable[T]]) -> T:
    from choreo.broker import open_broker
    from choreo.cli.process import run_async

    address = broker_url(url)

    async def opened_and_closed() -> T:
        opened = await open_broker(address)
        try:
            return await work(opened)
        finally:
            await opened.close()

    return run_async(opened_and_closed)


def _since_ms(since: str | None) -> int | None:
    """A duration back from now, or a point in time, in milliseconds since the Unix epoch."""
    from choreo.contract.policy import duration_ms
    from choreo.errors import ConfigurationError

    if since is None:
        return None
    now = datetime.now(UTC)
    try:
        return int(now.timestamp() * 1_000) - duration_ms(since)
    except ValueError:
        pass
    try:
        point = datetime.fromisoformat(since)
    except ValueError:
        raise ConfigurationError(f"--since {since!r} is neither like 2h or 7d nor like 2026-01-31T12:00Z") from None
    return int((point if point.tzinfo else point.replace(tzinfo=UTC)).timestamp() * 1_000)


def _at(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")


def _decoded(letter: DeadLetter) -> Any:
    """What the value says in its own codec, as plain values; ``None`` if it says nothing there."""
    import msgspec

    from choreo.errors import Undecodable
    from choreo.messages.codec import decode_user_value
    from choreo.messages.headers import MSGPACK, read_route

    content_type = read_route(letter.headers).content_type
    try:
        value: Any = decode_user_value(letter.value, Any, content_type=content_type)
        msgspec.json.encode(value)  # MessagePack knows what JSON does not
    except (Undecodable, TypeError, ValueError, RecursionError, OverflowError):
        return None
    # Any first byte is something in MessagePack; what choreo and its users write is more than that.
    return value if content_type != MSGPACK or isinstance(value, dict | list) else None


def _print(letter: DeadLetter, notes: Sequence[Redriven]) -> None:
    import msgspec

    lines = [
        f"dead letter {letter.id} of {letter.topic}, key {letter.key!r}",
        f"appended {_at(letter.timestamp_ms)}, refused {_at(letter.buried_ms)} by {letter.source}",
        f"{letter.reason} ({letter.error}): {letter.message}",
    ]
    if letter.redriven_from:
        lines.append(f"a copy of dead letter {letter.redriven_from}, refused again")
    lines += [f"written back {_at(each.at_ms)} to {each.to} by {each.by}: {each.why}" for each in notes]
    if letter.cut:
        lines.append(f"left out here, because the letter would have been too large: {letter.cut}")
    lines.append(f"headers ({len(letter.headers)}):")
    lines += [f"  {name}: {_shown(value)}" for name, value in letter.headers]
    decoded = _decoded(letter)
    if decoded is not None:
        lines.append(f"value ({len(letter.value)} bytes), decoded:")
        lines += msgspec.json.format(msgspec.json.encode(decoded)).decode().splitlines()
    else:
        lines.append(f"value ({len(letter.value)} bytes):")
        lines += _dump(letter.value[:VALUE_BYTES_SHOWN])
        if len(letter.value) > VALUE_BYTES_SHOWN:
            lines.append(f"  … {len(letter.value) - VALUE_BYTES_SHOWN} bytes more; --json has them all")
    for line in lines:
        print(escaped(line))  # noqa: T201 - the command's output


def _shown(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return repr(value)


def _dump(data: bytes) -> list[str]:
    """Sixteen bytes a line: offset, hexadecimal, and what of it is plain ASCII."""
    return [
        f"  {at:08x}  {data[at : at + 16].hex(' '):<47}  "
        + "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data[at : at + 16])
        for at in range(0, len(data), 16)
    ]
