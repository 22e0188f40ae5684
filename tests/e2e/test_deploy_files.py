"""The files of ``deploy/`` without a container engine: they say what exists, and the same everywhere."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree as ET

import promql_parser
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from choreo.observe import metrics
from deploy import metrics_page
from deploy.kafka.local_kafka import LocalKafkaError, find_jars, find_java
from deploy.run_procfile import order_environment, read_procfile
from tests.web_world import running, until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
CHOREO = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "choreo-order"}
OURS = {name: service for name, service in CHOREO.items() if service["restart"] != "no"}
ONCE = ("keys", "bootstrap")
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "choreo.json").read_text())

SUFFIXES = {"histogram": ("_bucket", "_count", "_sum")}
LABELS = {
    row.name + suffix: {*row.labels, "le"}
    for row in metrics.Metrics().table()
    for suffix in SUFFIXES.get(row.kind, ("",))
}
# Of the scrape itself and of prometheus_client's process collector.
LABELS |= {name: set() for name in ("up", "process_resident_memory_bytes", "process_cpu_seconds_total")}
OF_THE_TARGET = {"job", "instance", "service"}
VALUES = {
    "outcome": {*get_args(metrics.Outcome)},
    "phase": {*get_args(metrics.Phase)},
    "result": {
        *get_args(metrics.StepResult),
        *get_args(metrics.AttemptResult),
        *get_args(metrics.CompensationResult),
        "ok",
        "error",
    },
    "job": {config["job_name"] for config in PROMETHEUS["scrape_configs"]},
}


def queries() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard and of the alerts, with a name."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}, {target['refId']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            selector = re.fullmatch(r"label_values\((.+), \w+\)", variable["definition"])
            assert selector is not None, variable["definition"]
            yield f"variable {variable['name']}", selector[1]
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]


QUERIES = list(queries())


def parts(expression: Any) -> Iterator[Any]:
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (part := getattr(expression, name, None)) is not None:
            yield from parts(part)
    for argument in getattr(expression, "args", ()):
        yield from parts(argument)


@pytest.mark.parametrize(("name", "query"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_query_names_only_metrics_labels_and_values_that_exist(name: str, query: str) -> None:
    tree = promql_parser.parse(query)
    selectors = [part for part in parts(tree) if isinstance(part, promql_parser.VectorSelector)]
    assert selectors, "it reads something"
    known: set[str] = set(OF_THE_TARGET)
    for selector in selectors:
        assert selector.name in LABELS, f"no process has a metric {selector.name}"
        known |= LABELS[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in LABELS[selector.name] | OF_THE_TARGET, f"{selector.name} has no label {matcher.name}"
            if matcher.name in VALUES and not matcher.value.startswith("$"):
                assert matcher.value in VALUES[matcher.name], f"{matcher.name} is never {matcher.value!r}"
    grouped = {label for part in parts(tree) for label in getattr(getattr(part, "modifier", None), "labels", ())}
    assert grouped <= known, f"it groups by labels that nothing has: {grouped - known}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_it_means_and_only_words_that_templates_know(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert {"summary", "description"} <= rule["annotations"].keys()
    labels = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    tree = promql_parser.parse(rule["expr"])
    aggregates = [part for part in parts(tree) if isinstance(part, promql_parser.AggregateExpr)]
    kept = (
        {label for part in aggregates for label in part.modifier.labels} if aggregates else set.union(*LABELS.values())
    )
    assert labels <= kept | OF_THE_TARGET


@pytest.mark.parametrize("command", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_prometheus_takes_the_alerts_and_each_fires_when_it_should(command: tuple[str, ...]) -> None:
    named = ROOT / ".choreo" / "promtool" / "usr" / "bin" / "promtool"
    program = shutil.which("promtool") or (str(named) if named.exists() else None)
    if program is None:
        if os.environ.get("CHOREO_REQUIRE_PROMTOOL", "0") != "0":
            pytest.fail("CHOREO_REQUIRE_PROMTOOL is set, but there is no promtool", pytrace=False)
        pytest.skip("there is no promtool; 'make promtool' gets one")
    done = subprocess.run([program, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test() -> None:
    told = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    quiet, _, loud = told.partition("each alert fires")
    for rule in RULES:
        assert rule["alert"] in quiet, rule["alert"]
        assert rule["alert"] in loud, rule["alert"]


# Where nothing has gone wrong these have no series to show: their labels are not known beforehand.
ONLY_WITH_AN_INBOX = {"choreo_inbox_errors_total"}


async def test_every_metric_that_is_queried_is_shown_by_a_system_that_runs() -> None:
    async with running() as world:
        await world.start("fine")
        await world.start("bad", fail="no")
        await world.start("stuck", stick="no")
        await world.until("fine", "completed")
        await world.until("bad", "compensated")
        await world.until("stuck", "stuck")

        async def shown() -> set[str]:
            families = text_string_to_metric_families(generate_latest(world.metrics.registry).decode())
            return {sample.name for family in families for sample in family.samples}

        queried = {
            part.name
            for _, query in QUERIES
            for part in parts(promql_parser.parse(query))
            if isinstance(part, promql_parser.VectorSelector)
        } - {"up", *ONLY_WITH_AN_INBOX}

        async def all_shown() -> bool:
            return queried <= await shown()

        try:
            await until(all_shown, "all metrics", within_s=5)
        except AssertionError:
            raise AssertionError(f"nobody shows {sorted(queried - await shown())}") from None


def test_the_page_of_metrics_is_as_the_table_says() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.page(), "write it again: make metrics-page"
    for name in metrics_page.WORDS.values():
        assert get_args(name)


def test_the_legends_of_the_dashboard_name_labels_that_its_queries_keep() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            tree = promql_parser.parse(target["expr"])
            aggregates = [part for part in parts(tree) if isinstance(part, promql_parser.AggregateExpr)]
            kept = {label for part in aggregates if part.modifier for label in part.modifier.labels}
            assert shown <= (kept if aggregates else set.union(*LABELS.values()) | OF_THE_TARGET), panel["title"]


def test_panels_of_the_dashboard_do_not_overlap_and_have_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_compose_file_fits_the_compose_schema() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_containers_and_the_procfile_run_the_same_commands() -> None:
    assert {name: shlex.split(service["command"]) for name, service in OURS.items()} == read_procfile()


def test_containers_and_local_processes_read_the_same_variables() -> None:
    compose = {variable for service in OURS.values() for variable in service["environment"]}
    local = order_environment(Path("directory")).keys()
    # On one machine, under one user, a key for each process would keep nobody apart.
    signing = {"CHOREO_SIGNING_KEY_FILE", "CHOREO_SIGNING_KEY_ID", "CHOREO_TRUST_FILE"}
    assert compose - {"CHOREO_SHUTDOWN_TIMEOUT_SECONDS", "CHOREO_HTTP_TOKENS"} - signing == set(local)


def test_each_part_is_given_its_own_key_and_no_other() -> None:
    """The container that makes the keys has all of them; it is alone, without a network, and ends."""
    assert set(CHOREO) - set(OURS) == {*ONCE, "client"}
    assert CHOREO["keys"]["network_mode"] == "none"
    for name, service in CHOREO.items():
        mounts = [
            volume
            for volume in service["volumes"]
            if "keys" in (volume if isinstance(volume, str) else volume["source"])
        ]
        if name == "keys":
            assert mounts == ["keys:/data"]
            continue
        (mount,) = mounts
        assert mount["volume"] == {"subpath": name}
        assert mount["read_only"]
        assert service["environment"]["CHOREO_SIGNING_KEY_ID"] == f"{name}-1"
        for file in ("CHOREO_SIGNING_KEY_FILE", "CHOREO_TRUST_FILE"):
            assert service["environment"][file].startswith(f"{mount['target']}/")


def test_one_command_starts_all_and_waits_only_for_what_ends() -> None:
    """`up --wait` takes a container that has ended for one that is done only if another one waits for its end."""
    for name in ONCE:
        awaited = [other for other, service in CHOREO.items() if name in service["depends_on"]]
        assert awaited
        assert all(
            CHOREO[other]["depends_on"][name]["condition"] == "service_completed_successfully" for other in awaited
        )
    assert CHOREO["client"]["profiles"], "nobody starts it with the others"


def test_what_a_container_keeps_is_in_its_volume() -> None:
    for name, service in OURS.items():
        (volume,) = (volume for volume in service["volumes"] if isinstance(volume, str))
        source, target = volume.split(":")
        assert source in COMPOSE["volumes"]
        paths = [value for key, value in service["environment"].items() if key.endswith(("_DATABASE", "_STORE"))]
        assert len(paths) == 1, name
        assert paths[0].removeprefix("sqlite:///").startswith(f"{target}/")


def test_prometheus_scrapes_every_container_of_ours_and_nothing_else() -> None:
    targets = {
        target: config["labels"]["service"]
        for job in PROMETHEUS["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    }
    assert targets == {f"{name}:8080": name for name in OURS}


def test_every_file_that_compose_mounts_is_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists()
    for rules in PROMETHEUS["rule_files"]:
        assert (DEPLOY / "prometheus" / rules).is_file()
    dashboards = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/choreo.yaml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    (provider,) = dashboards["providers"]
    assert provider["options"]["path"] in mounts.values()
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name in {file.name for file in (DEPLOY / "grafana/dashboards").iterdir()}


def test_ports_are_open_to_this_machine_only_and_given_once() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_containers_are_given_longer_to_end_than_the_services_take() -> None:
    for service in OURS.values():
        shutdown_s = float(service["environment"]["CHOREO_SHUTDOWN_TIMEOUT_SECONDS"])
        assert float(service["stop_grace_period"].removesuffix("s")) > shutdown_s


def test_the_kafka_image_is_the_version_that_tests_run_against() -> None:
    pom = ET.parse(DEPLOY / "kafka" / "pom.xml")
    maven = {"m": "http://maven.apache.org/POM/4.0.0"}
    versions = {
        dependency.findtext("m:artifactId", namespaces=maven): dependency.findtext("m:version", namespaces=maven)
        for dependency in pom.iterfind(".//m:dependency", maven)
    }
    assert COMPOSE["services"]["kafka"]["image"] == f"apache/kafka:{versions['kafka_2.13']}"


@pytest.mark.kafka
def test_kafka_takes_the_settings_of_its_container(tmp_path: Path) -> None:
    """The image turns KAFKA_NODE_ID into node.id and so on; Kafka's own format command checks what it gets."""
    settings = {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): value
        for name, value in COMPOSE["services"]["kafka"]["environment"].items()
    }
    properties = tmp_path / "server.properties"
    settings["log.dirs"] = str(tmp_path / "log")
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    try:
        java = [find_java(), "-cp", f"{find_jars()}/*"]
    except LocalKafkaError as error:
        pytest.skip(str(error))
    format_log = [*java, "kafka.tools.StorageTool", "format", "-t", "4L6g3nShT-eMCtK--X86sw", "-c", str(properties)]
    done = subprocess.run(format_log, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "log" / "meta.properties").exists()


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def is_ignored(path: str) -> bool:
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if pattern and not pattern.startswith("#") and fnmatch.fnmatch(path, pattern):
            ignored = not line.startswith("!")
    return ignored


def test_the_image_copies_only_what_is_there_and_not_ignored() -> None:
    copied = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert set(copied) == {"requirements/image.lock", "pyproject.toml", "README.md", "LICENSE", "choreo", "services"}
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [source for source in copied if is_ignored(source)] == []
    assert is_ignored("tests")
    assert is_ignored(".git")
    assert is_ignored("services/demo")


def test_the_image_runs_as_a_user_without_rights_and_checks_its_own_health() -> None:
    found = dict(instructions())
    assert found["USER"] == "10001"
    assert "/healthz" in found["HEALTHCHECK"]
    stages = [arguments for name, arguments in instructions() if name == "FROM"]
    assert len(stages) == 2, "what builds the package stays behind"


def test_the_health_check_of_the_image_is_a_program_that_runs(tmp_path: Path) -> None:
    found = dict(instructions())["HEALTHCHECK"]
    command = json.loads(found[found.index("CMD [") + len("CMD ") :])
    done = subprocess.run(
        [sys.executable, *command[1:]], env={"CHOREO_HTTP_PORT": "9"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Connection refused" in done.stderr, "it asks the port that the variable names"
