"""The manifests without a cluster: right by Kubernetes' own schemas, and what they start does its job when run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import psycopg
import pytest
import yaml

from choreo.access import principals
from choreo.broker.topics import topic_specs
from choreo.cli.app import run_command
from choreo.cli.names import load_parts
from choreo.cli.settings import SETTINGS, read
from choreo.saga_log.runtime import GROUP
from deploy.kafka.local_kafka import LocalKafkaError
from deploy.run_procfile import ROOT, Processes, free_ports
from tests.conftest import USE
from tests.e2e.shell import run_deployed
from tests.secure_kafka import SecureKafka, password_of

KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
VERSIONS = ("1.33", "1.37")
PATCHES = ("container.yaml", "job.yaml")
STEP_SERVICES = ("inventory", "payment", "shipping", "notification")
PARTS = ["services.order:ORDER", *(f"services.{name}:service" for name in STEP_SERVICES)]


def documents() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {
        doc["metadata"]["name"]: doc for path, doc in documents() if path.name not in PATCHES and doc["kind"] in kinds
    }


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (one,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


WORKLOADS = of_kind("Deployment", "Job")


# ------------------------------------------------------------------------------------------------------- the manifests


def is_built_in(document: dict[str, Any]) -> bool:
    group = document["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and "kustomize" not in group)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_built_in_resource_is_right_by_kubernetes_schemas(version: str) -> None:
    checked = 0
    for path, document in documents():
        if is_built_in(document) and path.name not in PATCHES:
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= 15


SCHEMAS = json.loads((ROOT / "tests" / "schemas" / "custom-resources.json").read_text())


def problems_of(document: dict[str, Any]) -> list[str]:
    """What is wrong with a custom resource by the schema of its kind."""
    found = jsonschema.Draft202012Validator(SCHEMAS[document["kind"]]).iter_errors(document)
    return [f"{problem.json_path}: {problem.message}" for problem in found]


def test_every_custom_resource_is_right_by_the_schemas_of_its_operator() -> None:
    checked = set()
    for path, document in documents():
        if not is_built_in(document) and "kustomize" not in document["apiVersion"]:
            assert problems_of(document) == [], f"{path.name}: {document['metadata']['name']}"
            checked.add(document["kind"])
    assert checked == set(SCHEMAS), "each schema is of a resource that there is"


def places(part: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every field below a resource's spec, but for free texts' names: settings of topics and of triggers, labels."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield part, name
            if name not in ("config", "metadata", "matchLabels"):
                yield from places(value)
    elif isinstance(part, list):
        for each in part:
            yield from places(each)


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_a_misspelt_field_of_a_custom_resource_is_found_wherever_it_is(kind: str) -> None:
    """So the test above can fail: each field of one of the resources, misspelt in turn."""
    document = next(doc for _, doc in documents() if doc["kind"] == kind)
    count = 0
    for part, name in list(places(document["spec"])):
        if part is document["spec"].get("selector", {}).get("matchLabels"):
            continue
        value = part.pop(name)
        part[f"{name}x"] = value
        assert problems_of(document) != [], f"{name} misspelt passes"
        del part[f"{name}x"]
        part[name] = value
        count += 1
    assert count >= 3
    wrong = {**document, "apiVersion": "nobody.example/v1"}
    assert problems_of(wrong) != []


def test_what_all_containers_have_in_common_is_right_once_it_is_merged() -> None:
    """By hand, for the schema's sake: names of lists' entries are merged, the rest is laid over."""
    for name, workload in WORKLOADS.items():
        patch = yaml.safe_load((BASE / ("job.yaml" if workload["kind"] == "Job" else "container.yaml")).read_text())
        merged = merge(workload, patch)
        merged["metadata"]["name"] = name
        kubernetes_validate.validate(merged, VERSIONS[-1], strict=True)
        one = container(merged)
        assert one["image"]
        assert one["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in one["volumeMounts"]} == {
            volume["name"] for volume in merged["spec"]["template"]["spec"]["volumes"]
        }


def merge(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        both = one.keys() & other.keys()
        return {**one, **other, **{key: merge(one[key], other[key]) for key in both}}
    if isinstance(one, list) and isinstance(other, list):
        named = {entry["name"]: entry for entry in one}
        for entry in other:
            named[entry["name"]] = merge(named.get(entry["name"], {}), entry)
        return list(named.values())
    return other


def test_kustomize_puts_them_together() -> None:
    path = f"{ROOT / '.choreo' / 'tools'}{os.pathsep}{os.environ['PATH']}"
    if (kustomize := shutil.which("kustomize", path=path)) is not None:
        build = [kustomize, "build"]
    elif (kubectl := shutil.which("kubectl")) is not None:
        build = [kubectl, "kustomize"]
    else:
        pytest.skip("there is no kustomize and no kubectl; `make kustomize` builds the former")
    done = subprocess.run([*build, KUBERNETES / "example"], capture_output=True, text=True, check=True)
    built = list(yaml.safe_load_all(done.stdout))
    for document in built:
        if is_built_in(document):
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
        else:
            assert problems_of(document) == [], document["metadata"]["name"]
    deployments = [document for document in built if document["kind"] == "Deployment"]
    assert {document["metadata"]["name"] for document in deployments} == {"saga-log", *STEP_SERVICES}
    for document in deployments:
        assert container(document)["image"] == "registry.example/choreo-order:0.1.0"
        assert container(document)["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert document["metadata"]["namespace"] == "choreo"


def test_settings_are_such_as_are() -> None:
    assert read(BASE / "choreo.toml")
    known = {setting.variable for setting in SETTINGS} | {"CHOREO_CONFIG"}
    known |= {f"{setting.variable}_FILE" for setting in SETTINGS if setting.is_secret}
    for workload in WORKLOADS.values():
        for variable in container(workload)["env"]:
            if variable["name"].startswith("CHOREO_"):
                assert variable["name"] in known


def test_topics_and_users_are_what_the_contracts_say(capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--format", "strimzi", "--cluster", "events"]
    assert run_command(["topics", "services.order:ORDER", *at, "--replication", "3"]) == 0
    assert run_command(["acl", *PARTS, *at]) == 0
    written = (KUBERNETES / "components" / "strimzi" / "strimzi.yaml").read_text()
    assert list(yaml.safe_load_all(written)) == list(yaml.safe_load_all(capsys.readouterr().out))
    partitions = tomllib.loads((BASE / "choreo.toml").read_text())["partitions"]
    topics = of_kind("KafkaTopic")
    assert set(topics) == {spec.name for spec in topic_specs("order", partitions=1, retention_ms=1)}
    assert topics["choreo.order"]["spec"]["partitions"] == partitions


def test_every_user_that_is_named_exists() -> None:
    users = set(of_kind("KafkaUser"))
    for name, workload in WORKLOADS.items():
        volumes = workload["spec"]["template"]["spec"]["volumes"]
        (secret,) = (volume["secret"]["secretName"] for volume in volumes if volume["name"] == "kafka-user")
        assert secret in users
        assert {"name": "CHOREO_KAFKA_USERNAME", "value": secret} in container(workload)["env"], name


def test_each_part_is_given_its_own_key_and_no_other() -> None:
    for name, workload in WORKLOADS.items():
        volumes = {volume["name"]: volume for volume in workload["spec"]["template"]["spec"]["volumes"]}
        assert volumes["signing"]["secret"] == {"secretName": f"signing-{name}"}
        assert {"name": "CHOREO_SIGNING_KEY_ID", "value": f"{name}-1"} in container(workload)["env"]


def test_replicas_by_lag_watch_the_groups_that_there_are() -> None:
    groups = {f"choreo.{name}" for name in STEP_SERVICES} | {GROUP}
    scaled = of_kind("ScaledObject")
    assert {doc["spec"]["triggers"][0]["metadata"]["consumerGroup"] for doc in scaled.values()} == groups
    assert {doc["spec"]["scaleTargetRef"]["name"] for doc in scaled.values()} <= set(WORKLOADS)


@pytest.mark.skipif(sys.platform != "linux", reason="the linter comes as a Linux binary")
def test_the_dockerfile_passes_the_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------------- what they start, run


def environment_of(name: str, kafka: SecureKafka, directory: Path, store: str) -> dict[str, str]:
    """A container's variables, with the files of this machine in place of what is mounted, and the same choreo.toml."""
    own = directory / name
    (own / "secrets").mkdir(parents=True)
    (own / "secrets" / "password").write_text(password_of(f"choreo-{name}"))
    (own / "secrets" / "url").write_text(store)
    signing = directory.parent / "keys" / name
    config = own / "choreo.toml"
    here = {
        "events-kafka-bootstrap:9093": f"127.0.0.1:{kafka.sasl_port}",
        "/run/ca/ca.crt": str(kafka.authority.ca_file),
        "/run/secrets/kafka": str(own / "secrets"),
        "/run/secrets/signing": str(signing),
        "0.0.0.0": "127.0.0.1",
    }
    text = (BASE / "choreo.toml").read_text()
    for there, path in here.items():
        assert there in text
        text = text.replace(there, path)
    config.write_text(text)
    said = {variable["name"]: variable["value"] for variable in container(WORKLOADS[name])["env"]}
    said = {
        key: value.replace("/run/secrets/store", str(own / "secrets")).replace("/data/", f"{own}/")
        for key, value in said.items()
    }
    said.pop("CHOREO_HTTP_TOKENS", None)  # on this machine alone, nobody has to show one
    return {**said, "CHOREO_CONFIG": str(config)}


@pytest.mark.e2e
@pytest.mark.kafka
@pytest.mark.postgres
def test_what_is_deployed_runs_sagas_with_the_rights_it_has(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE kubernetes")
    store = psycopg.conninfo.make_conninfo(postgres_url, dbname="kubernetes")
    parsed = psycopg.conninfo.conninfo_to_dict(store)
    url = f"postgresql://{parsed['user']}:{parsed['password']}@{parsed['host']}:{parsed['port']}/kubernetes"
    sagas, services = load_parts(PARTS)
    roles = principals(
        sagas, [(each.name, each.group, [name for name, _ in each.contracts]) for each in services], GROUP
    )
    try:
        kafka = SecureKafka(tmp_path, [f"choreo-{one.role}" for one in roles], authorizing=True)
        kafka.kafka.start()
    except LocalKafkaError as error:
        USE.give_up(str(error))
    with ExitStack() as stack:
        stack.callback(kafka.kafka.stop)
        asyncio.run(kafka.allow(roles))
        run_deployed(["choreo", "keys", "init", *PARTS, "--directory", str(tmp_path / "keys")], {})
        environments = {name: environment_of(name, kafka, tmp_path / "run", url) for name in WORKLOADS}
        run_deployed(container(WORKLOADS["bootstrap"])["args"], environments["bootstrap"])
        running = []
        for name, port in zip(("saga-log", *STEP_SERVICES), free_ports(5), strict=True):
            command = {name: container(WORKLOADS[name])["args"]}
            processes = Processes(command, environments[name], ports={name: port}, logs=tmp_path / "logs")
            stack.enter_context(processes)
            processes.start()
            running.append(processes)
        for processes in running:
            processes.await_ready()
        client = {
            **environments["bootstrap"],
            "CHOREO_KAFKA_USERNAME": "choreo-client",
            "CHOREO_KAFKA_PASSWORD": password_of("choreo-client"),
            "CHOREO_SIGNING_KEY_ID": "client-1",
        }
        config = Path(client["CHOREO_CONFIG"])
        ours = config.with_name("client.toml")
        lines = config.read_text().splitlines(keepends=True)
        own = "".join(line for line in lines if not line.startswith("password_file"))
        ours.write_text(own.replace("/keys/bootstrap/", "/keys/client/"))
        client["CHOREO_CONFIG"] = str(ours)
        start = ["choreo", "start", "services.order:ORDER"]
        assert "completed" in run_deployed([*start, "{}", "--wait"], client)
        assert "compensated" in run_deployed(
            [*start, '{"trouble": {"depot_closed": true}}', "--wait"], client, status=1
        )
        with psycopg.connect(store) as connection:
            assert connection.execute("SELECT count(*) FROM sagas").fetchone() == (2,)
        operator = {
            **client,
            "CHOREO_KAFKA_USERNAME": "choreo-operator",
            "CHOREO_KAFKA_PASSWORD": password_of("choreo-operator"),
        }
        assert "0 dead letter(s)" in run_deployed(["choreo", "dead-letters", "list", "order"], operator)
