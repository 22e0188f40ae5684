"""Settings: which word counts, what is refused, what is hidden."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from choreo.broker import open_broker
from choreo.broker.kafka.security import OPTIONS, SECRETS
from choreo.cli import settings
from choreo.cli.settings import SETTINGS, InForce, in_force, misspelt, read, shown
from choreo.errors import ConfigurationError
from choreo.url import HIDDEN, shown_url, split_url

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "_STARTED_WITH", {})
    return tmp_path


def told(key: str, environment: dict[str, str]) -> InForce:
    (found,) = (one for one in in_force(environment) if one.setting.key == key)
    return found


def test_the_environment_comes_before_the_file_and_the_file_before_the_default(directory: Path) -> None:
    (directory / "choreo.toml").write_text('broker = "sqlite:///file.db"\n[http]\nport = 8001\n')
    assert told("broker", {"CHOREO_BROKER": "sqlite:///said.db"})[1:3] == ("sqlite:///said.db", "environment")
    assert told("broker", {})[1:] == ("sqlite:///file.db", "file", "choreo.toml: broker")
    assert told("http.port", {}).value == "8001"
    assert told("log.level", {})[1:3] == ("info", "default")


def test_secrets_may_stand_in_files_of_their_own(directory: Path) -> None:
    (directory / "secret").write_text("hush\n")
    assert told("kafka.password", {"CHOREO_KAFKA_PASSWORD_FILE": "secret"}).value == "hush"
    (directory / "choreo.toml").write_text('[kafka]\npassword_file = "secret"\n')
    one = told("kafka.password", {})
    assert (one.value, one.origin, shown(one)) == ("hush", "file", HIDDEN)
    with pytest.raises(ConfigurationError, match=r"'nowhere' for kafka\.password cannot be read: No such file"):
        in_force({"CHOREO_KAFKA_PASSWORD_FILE": "nowhere"})


def test_a_file_that_is_wrong_is_told_as_a_whole(directory: Path) -> None:
    (directory / "choreo.toml").write_text('brokr = "x"\npartitions = "many"\n[http]\nport = true\n[quite]\nelse = 1\n')
    with pytest.raises(ConfigurationError) as refusal:
        read(Path("choreo.toml"))
    said = str(refusal.value)
    assert "brokr is no setting; did you mean broker?" in said
    assert "partitions = 'many' has to be a whole number" in said
    assert "http.port = True has to be a whole number" in said
    assert "quite.else is no setting; `choreo config` lists those that are" in said


@pytest.mark.parametrize(("text", "said"), [(b"a = ", "is no TOML"), (b"\xff", "cannot be read")])
def test_a_file_that_is_none_is_refused(directory: Path, text: bytes, said: str) -> None:
    (directory / "choreo.toml").write_bytes(text)
    with pytest.raises(ConfigurationError, match=said):
        in_force({})


def test_a_file_that_is_named_has_to_be_there() -> None:
    with pytest.raises(ConfigurationError, match=r"elsewhere\.toml cannot be read: No such file"):
        in_force({"CHOREO_CONFIG": "elsewhere.toml"})


def test_a_misspelt_variable_is_told_and_a_stranger_is_left_alone() -> None:
    lines = list(misspelt({"CHOREO_BROKR": "x", "CHOREO_SAGA_LOG_SERVICE_HOST": "10.0.0.1", "PATH": "/bin"}))
    assert lines == ["the variable CHOREO_BROKR means nothing here; did you mean CHOREO_BROKER?"]


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("postgresql://choreo:hush@db:5432/sagas", f"postgresql://choreo:{HIDDEN}@db:5432/sagas"),
        ("postgresql://choreo@db/sagas", "postgresql://choreo@db/sagas"),
        ("sqlite:///file.db", "sqlite:///file.db"),
        ("kafka://db?acks=all&key_password=hush&x=1", f"kafka://db?acks=all&key_password={HIDDEN}&x=1"),
        ("", ""),
    ],
)
def test_a_password_in_a_url_is_not_shown(url: str, seen: str) -> None:
    assert shown_url(url) == seen


@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:hush@host/x",
        "kafka://me:hush@host:9092",
        "kafka://host:9092?password=hush",
        "kafka://host:nine?token=hush",
        "sqlite://me:hush@host/file.db",
    ],
)
async def test_no_error_about_a_broker_s_url_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        await open_broker(url)
    assert "hush" not in str(refusal.value)


def test_the_command_says_what_is_in_force_and_hides_secrets(directory: Path) -> None:
    (directory / "choreo.toml").write_text('store = "postgresql://choreo:hush@db/sagas"\n[kafka]\nusername = "me"\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CHOREO_KAFKA_PASSWORD": "hush", "CHOREO_LOG_LEVL": "debug"}
    done = subprocess.run(
        [sys.executable, "-m", "choreo.cli", "config"], capture_output=True, text=True, env=environment, check=True
    )
    assert "hush" not in done.stdout + done.stderr
    assert re.search(r"^store +postgresql://choreo:\*+@db/sagas  \(choreo.toml: store\)$", done.stdout, re.MULTILINE)
    assert re.search(r"^kafka.password +\*+  \(CHOREO_KAFKA_PASSWORD\)$", done.stdout, re.MULTILINE)
    assert "did you mean CHOREO_LOG_LEVEL?" in done.stderr


def test_what_the_file_says_is_done(directory: Path) -> None:
    (directory / "choreo.toml").write_text('broker = "nonsense://"\n')
    done = subprocess.run(
        [sys.executable, "-m", "choreo.cli", "status", "order", "x"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 3
    assert "nonsense://" in done.stderr


# ----------------------------------------------------------------------------- the table is whole, and documented


def test_every_variable_of_the_command_line_is_a_setting() -> None:
    known = {setting.variable for setting in SETTINGS}
    found = {
        name
        for path in (ROOT / "choreo").rglob("*.py")
        for name in re.findall(r'env_var="(CHOREO_[A-Z_]+)"', path.read_text())
    }
    assert found
    assert found <= known


def test_every_option_of_kafkas_security_is_a_setting() -> None:
    ours = {setting.variable for setting in SETTINGS}
    files = {f"{setting.variable}_FILE" for setting in SETTINGS if setting.is_secret}
    assert {f"CHOREO_KAFKA_{name.upper()}" for name in (*OPTIONS, *SECRETS)} <= ours | files


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for setting in SETTINGS:
        line = f"| `{setting.key}` | `{setting.variable}` | {setting.default or '-'} | {setting.about} |"
        assert line in page, line


def test_a_url_with_several_hosts_is_taken_apart_whatever_python_thinks_of_it() -> None:
    parts = split_url("KAFKA://one:1,[::1]:9/path?a=b&c=d#end")
    assert parts == ("kafka", "one:1,[::1]:9", "/path", "a=b&c=d", "end")
    assert split_url("no-scheme") == ("", "", "no-scheme", "", "")
