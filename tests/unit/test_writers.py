"""Who may write which record: one answer for each, and the trust file agrees."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from choreo import Saga, Step
from choreo.broker.signed.trust import Distrusted, Trust
from choreo.broker.topics import (
    CONTRACTS_TOPIC,
    checkpoint_topic,
    dead_letter_topic,
    is_saga_topic,
    saga_of,
    saga_topic,
)
from choreo.messages.codec import encode
from choreo.messages.examples import examples
from choreo.messages.family import UndoRequested
from choreo.messages.headers import JSON
from choreo.messages.records import (
    RECORD_TYPES,
    TYPE_BY_TAG,
    CompensationFailed,
    Record,
    SagaStarted,
    StepFailed,
)
from choreo.messages.writers import CONTEXT_TOO_LARGE, WRITERS, Writer, writer_of

SHOP = Saga("shop", Step("reserve", compensation="release"), Step("charge"))
SAMPLES = examples(SHOP)
OWNERS = {
    Writer.CLIENT: "client",
    Writer.STEP: "service",
    Writer.SAGA_LOG: "saga-log",
    Writer.PARENT: "parents-saga-log",
}


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """Every kind of writer has an owner of its own."""
    lines = []
    for owner in (*OWNERS.values(), "bootstrap"):
        public = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
        lines.append(f'[keys.{owner}-1]\nowner = "{owner}"\npublic = "{public}"\n')
    lines.append(
        """
        [sagas.shop]
        saga_log = ["saga-log"]
        clients = ["client"]
        steps = { reserve = ["service"], charge = ["service"] }
        [sagas.parent]
        saga_log = ["parents-saga-log"]
        clients = []
        steps = {}
        """
    )
    path = tmp_path_factory.mktemp("trust") / "trust.toml"
    path.write_text("\n".join(lines))
    return Trust.read(path)


def believed_of(trust: Trust, record: Record) -> set[str]:
    """The owners of whom the record is believed."""
    found = set()
    for owner in (*OWNERS.values(), "bootstrap"):
        try:
            trust.check_record(owner, record.saga, record.saga_id.encode(), encode(record), JSON)  # type: ignore[arg-type]
        except Distrusted:
            continue
        found.add(owner)
    return found


def test_every_record_has_exactly_one_writer() -> None:
    assert set(WRITERS) == set(RECORD_TYPES)
    assert {writer_of(tag, run="drawn") for tag in TYPE_BY_TAG} == set(Writer)


@pytest.mark.parametrize("kind", RECORD_TYPES, ids=lambda kind: kind.__name__)
def test_a_record_is_believed_of_its_writer_and_of_nobody_else(trust: Trust, kind: type[Record]) -> None:
    assert believed_of(trust, SAMPLES[kind]) == {OWNERS[WRITERS[kind]]}


@pytest.mark.parametrize("kind", [StepFailed, CompensationFailed], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("run", ["", CONTEXT_TOO_LARGE])
def test_what_the_saga_log_says_for_a_step_no_service_may_say(trust: Trust, kind: type[Record], run: str) -> None:
    sample = SAMPLES[kind]
    fields = {name: getattr(sample, name) for name in sample.__struct_fields__} | {"run": run}
    assert believed_of(trust, kind(**fields)) == {"saga-log"}


def test_a_saga_that_is_a_step_is_started_by_its_parents_saga_log_alone(trust: Trust) -> None:
    sample = SAMPLES[SagaStarted]
    undo = SAMPLES[UndoRequested]
    assert isinstance(undo, UndoRequested)
    fields = {name: getattr(sample, name) for name in sample.__struct_fields__} | {"parent": undo.parent}
    assert believed_of(trust, SagaStarted(**fields)) == {"parents-saga-log"}


def test_what_is_no_record_has_no_writer(trust: Trust) -> None:
    assert writer_of("step_imagined") is None
    value = b'{"type":"step_imagined","saga":"shop","saga_id":"s"}'
    with pytest.raises(Distrusted, match="may not write step_imagined"):
        trust.check_record("saga-log", "shop", b"s", value, JSON)


def test_a_history_is_told_from_the_topics_beside_it() -> None:
    for saga in ("shop", "check-points", "checkpoints", "dead-letters"):
        assert is_saga_topic(saga_topic(saga))
        assert saga_of(saga_topic(saga)) == saga
        assert not is_saga_topic(dead_letter_topic(saga))
        assert not is_saga_topic(checkpoint_topic(saga))
    assert not is_saga_topic(CONTRACTS_TOPIC)
    assert not is_saga_topic("elsewhere.shop")
