"""TLS and SASL against a real broker, and what is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from choreo.broker import open_broker
from choreo.broker.kafka.security import Security, is_loopback
from choreo.broker.kafka.settings import KafkaSettings
from choreo.broker.port import Broker, TopicPartition, TopicSpec
from choreo.errors import BrokerUnavailable, ConfigurationError
from deploy.kafka.local_kafka import LocalKafkaError
from tests.certificates import Authority
from tests.conftest import USE
from tests.secure_kafka import SecureKafka, TokenServer, password_of

# aiokafka leaves the socket of a connection that is refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    try:
        kafka = SecureKafka(tmp_path_factory.mktemp("secure"), ["alice"])
        kafka.kafka.start()
    except LocalKafkaError as error:
        USE.give_up(str(error))
    yield kafka
    kafka.kafka.stop()


async def round_trip(broker: Broker, topic: str) -> bytes:
    """Write a record and read it back, over every kind of client that the adapter opens."""
    await broker.ensure_topics([TopicSpec(name=topic, partitions=1, retention_ms=3_600_000)])
    producer = await broker.producer()
    await producer.send(topic, key="k", value=b"hello", headers=())
    assigned: list[TopicPartition] = []

    async def on_assigned(tps: Any) -> None:
        assigned.extend(tps)

    async def on_revoked(tps: Any) -> None:
        del tps

    consumer = await broker.consumer(f"{topic}.group", [topic], on_assigned=on_assigned, on_revoked=on_revoked)
    for _ in range(100):
        if messages := await consumer.poll(timeout_s=0.2):
            break
    await consumer.close()
    await producer.close()
    return messages[0].value


@pytest.mark.kafka
async def test_mutual_tls(secure: SecureKafka) -> None:
    broker = await open_broker(secure.tls_url(certificate=secure.authority.issue("alice")))
    try:
        assert await round_trip(broker, "mutual") == b"hello"
    finally:
        await broker.close()


@pytest.mark.kafka
async def test_the_key_of_a_certificate_may_have_a_password(
    secure: SecureKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = secure.authority.issue("locked", password="open sesame")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await open_broker(secure.tls_url(certificate=certificate))
    monkeypatch.setenv("CHOREO_KAFKA_KEY_PASSWORD", "open sesame")
    broker = await open_broker(secure.tls_url(certificate=certificate))
    await broker.close()


@pytest.mark.kafka
async def test_nobody_comes_in_without_a_certificate(secure: SecureKafka) -> None:
    with pytest.raises(BrokerUnavailable):
        await open_broker(secure.tls_url() + "&open_timeout_ms=1500")


@pytest.mark.kafka
async def test_a_broker_that_a_stranger_signed_is_not_talked_to(secure: SecureKafka, tmp_path: Path) -> None:
    url = secure.tls_url(certificate=secure.authority.issue("alice"))
    url = url.replace(str(secure.authority.ca_file), str(Authority(tmp_path).ca_file))
    with pytest.raises(ConfigurationError, match="certificate verify failed"):
        await open_broker(url + "&open_timeout_ms=1500")


@pytest.mark.kafka
async def test_scram(secure: SecureKafka) -> None:
    broker = await open_broker(secure.user_url("alice"))
    try:
        assert await round_trip(broker, "scram") == b"hello"
    finally:
        await broker.close()


@pytest.mark.kafka
async def test_a_wrong_password_is_told_as_one(secure: SecureKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHOREO_KAFKA_PASSWORD", "guess")
    with pytest.raises(ConfigurationError, match="alice") as refusal:
        await open_broker(secure.sasl_url("sasl=scram-sha-512&username=alice"))
    assert "guess" not in str(refusal.value)


@pytest.mark.kafka
async def test_oauthbearer_with_tokens_that_are_renewed(secure: SecureKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    with TokenServer(secure.identity, {"payment": "token-secret"}) as server:
        monkeypatch.setenv("CHOREO_KAFKA_TOKEN_CLIENT_SECRET", "token-secret")
        url = secure.sasl_url(f"sasl=oauthbearer&token_url={server.url}&token_client_id=payment&token_scope=kafka")
        broker = await open_broker(url)
        try:
            assert await round_trip(broker, "oauth") == b"hello"
        finally:
            await broker.close()
        assert server.asked > 0
        monkeypatch.setenv("CHOREO_KAFKA_TOKEN_CLIENT_SECRET", "wrong")
        with pytest.raises(ConfigurationError, match="HTTP 401"):
            await open_broker(url + "&open_timeout_ms=1500")


# ----------------------------------------------------------------------------------------- refused before it is sent


def refusal_of(url: str, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        KafkaSettings.parse(url, environment or {}).connection()
    return str(refusal.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://broker:9092", "broker:9092 would be reached in plain text"),
        ("kafka://127.0.0.1,broker:9092", "broker:9092 would be reached in plain text"),
        ("kafka://broker?sasl=scram-sha-512&security=plaintext", "said without SASL"),
        ("kafka://broker?security=sasl_tls", "sasl='' is none of plain, scram-sha-256"),
        ("kafka://broker?security=sasl_tls&sasl=scram-sha-512", "username is missing"),
        ("kafka://broker?security=sasl_tls&sasl=scram-sha-512", "set CHOREO_KAFKA_PASSWORD, or password_file"),
        ("kafka://broker?security=sasl_plaintext&sasl=plain&username=u", "sends the password as it is"),
        ("kafka://broker?security=tls&cert_file=/a", "cert_file and key_file belong together"),
        ("kafka://localhost?ca_file=/a", "ca_file said without TLS"),
        ("kafka://broker?security=tls&ca_file=/nowhere", "ca_file '/nowhere' cannot be used: No such file"),
        ("kafka://broker?security=sasl_tls&sasl=plain&username=u&password_file=/no", "password_file '/no' cannot be"),
        ("kafka://broker?security=sasl_tls&sasl=oauthbearer&token_url=http://id/token", "has to be https://"),
        ("kafka://broker?security=tls&ca_fil=/a", "did you mean ca_file?"),
    ],
)
def test_what_is_unsafe_or_incomplete_is_refused_with_the_way_out(url: str, said: str) -> None:
    assert said in refusal_of(url)


def test_plain_text_goes_to_this_machine_or_where_it_is_meant() -> None:
    for url in ("kafka://localhost", "kafka://127.0.0.1:9092", "kafka://[::1]:9092", "kafka://far?security=plaintext"):
        assert KafkaSettings.parse(url, {}).connection()["security_protocol"] == "PLAINTEXT"
    assert not is_loopback("localhost.example.org:9092")


def test_the_environment_says_what_the_url_leaves_open(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(password_of("alice") + "\n")
    environment = {
        "CHOREO_KAFKA_SECURITY": "sasl_tls",
        "CHOREO_KAFKA_SASL": "scram-sha-256",
        "CHOREO_KAFKA_USERNAME": "alice",
        "CHOREO_KAFKA_PASSWORD_FILE": str(secret),
    }
    told = KafkaSettings.parse("kafka://broker:9093?sasl=scram-sha-512", environment).connection()
    assert (told["security_protocol"], told["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert told["sasl_plain_password"] == "alice-secret"


def test_secrets_are_not_shown() -> None:
    security = Security(security="sasl_tls", sasl="plain", username="u", secrets={"password": "hush"})
    assert "hush" not in repr(security) + str(security) + repr(KafkaSettings(bootstrap=("b",), security=security))
