"""Settings of a deployment: environment variables, a TOML file beside them, and secrets in files.

A setting is said by the command line, else by its variable, else by the file, else it has its default. The file is
``choreo.toml`` in the working directory, or what ``CHOREO_CONFIG`` names. A setting that is a secret may be said by a
variable with ``_FILE`` at its end, which names a file that holds it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from choreo.errors import ConfigurationError
from choreo.url import HIDDEN, shown_url

FILE_VARIABLE = "CHOREO_CONFIG"
FILE_DEFAULT = Path("choreo.toml")
PREFIX = "CHOREO_"
NEAR = 0.85  # so near, a variable with our prefix is a misspelt one and not somebody else's

Kind = Literal["text", "integer", "number", "flag"]
Origin = Literal["environment", "file", "default"]


class Setting(NamedTuple):
    """One thing that a deployment may say.

    Attributes:
        key: in the file; what stands before the dot is the table.
        variable: in the environment.
        kind: what its value is.
        default: as it is written, for people; empty if there is none.
        about: what it does, in a line.
        is_secret: it is never shown, and may stand in a file of its own.
        is_url: a password inside it is never shown.
    """

    key: str
    variable: str
    kind: Kind
    default: str
    about: str
    is_secret: bool = False
    is_url: bool = False


def _kafka(name: str, about: str, *, is_secret: bool = False) -> Setting:
    return Setting(f"kafka.{name}", f"CHOREO_KAFKA_{name.upper()}", "text", "", about, is_secret)


SETTINGS: tuple[Setting, ...] = (
    Setting("broker", "CHOREO_BROKER", "text", "", "the broker: kafka://host:9092 or sqlite:///file.db", is_url=True),
    Setting("store", "CHOREO_STORE", "text", "memory://", "the saga-log's store", is_secret=True, is_url=True),
    Setting("partitions", "CHOREO_PARTITIONS", "integer", "6", "partitions of saga topics that are created"),
    Setting("concurrency", "CHOREO_CONCURRENCY", "integer", "64", "handlers side by side, for each partition"),
    Setting(
        "shutdown_timeout_seconds",
        "CHOREO_SHUTDOWN_TIMEOUT_SECONDS",
        "number",
        "25",
        "what running handlers get after SIGTERM",
    ),
    Setting("http.host", "CHOREO_HTTP_HOST", "text", "127.0.0.1", "where metrics, health and the API are served"),
    Setting("http.port", "CHOREO_HTTP_PORT", "integer", "", "their port; none served without it, 0 any free one"),
    Setting("http.tokens", "CHOREO_HTTP_TOKENS", "text", "", "who may use the saga-log's API", is_secret=True),
    Setting("log.level", "CHOREO_LOG_LEVEL", "text", "info", "debug, info, warning or error"),
    Setting("log.format", "CHOREO_LOG_FORMAT", "text", "console", "console for people, json for programs"),
    Setting(
        "log.texts",
        "CHOREO_LOG_TEXTS",
        "text",
        "",
        "shown or hidden: texts of failures; hidden beside payload.keys",
    ),
    Setting("trace_parent", "CHOREO_TRACE_PARENT", "text", "", "off: start a trace of its own for each saga"),
    Setting("signing.key_file", "CHOREO_SIGNING_KEY_FILE", "text", "", "PEM of the key that signs our records"),
    Setting("signing.key_id", "CHOREO_SIGNING_KEY_ID", "text", "", "its name in the trust file"),
    Setting("signing.trust_file", "CHOREO_TRUST_FILE", "text", "", "whose signature is believed for which records"),
    Setting("signing.seal_key", "CHOREO_SEAL_KEY", "text", "", "PEM of the key that signs checkpoints of the log"),
    Setting("payload.keys", "CHOREO_PAYLOAD_KEYS", "text", "", "directory of keys; with it payloads are encrypted"),
    Setting("payload.subject", "CHOREO_PAYLOAD_SUBJECT", "text", "", "path in a saga's input to the data subject"),
    _kafka("security", "tls, sasl_tls; plaintext, sasl_plaintext"),
    _kafka("ca_file", "PEM of those who may have signed the brokers' certificates"),
    _kafka("cert_file", "PEM of our certificate, for mutual TLS"),
    _kafka("key_file", "PEM of its key"),
    _kafka("key_password", "the key's password", is_secret=True),
    _kafka("sasl", "scram-sha-512, scram-sha-256, oauthbearer or plain"),
    _kafka("username", "for all but oauthbearer"),
    _kafka("password", "for all but oauthbearer", is_secret=True),
    _kafka("token_url", "token endpoint, for oauthbearer"),
    _kafka("token_client_id", "who asks there"),
    _kafka("token_client_secret", "and shows this", is_secret=True),
    _kafka("token_scope", "what is asked for"),
    _kafka("token_ca_file", "PEM of those who may have signed the token endpoint's certificate"),
)

_TYPES: Mapping[Kind, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "flag": (bool,),
}


class InForce(NamedTuple):
    """A setting, what it is, and who said so."""

    setting: Setting
    value: str
    origin: Origin
    said_in: str

    def __repr__(self) -> str:
        return f"InForce({self.setting.key} = {shown(self)!r}, {self.origin}, {self.said_in!r})"


_STARTED_WITH: dict[str, str] = {}


def bring_into(environment: MutableMapping[str, str]) -> None:
    """Put what the file and the secrets' files say into the environment, where it is silent: once, when we start.

    Raises:
        ConfigurationError: a file cannot be read, or is wrong; it names everything that is.
    """
    _STARTED_WITH.update(environment)
    for one in in_force(environment):
        if one.origin != "default":
            environment[one.setting.variable] = one.value


def in_force(environment: Mapping[str, str]) -> list[InForce]:
    """All settings as they hold, given the variables that this process was started with.

    Raises:
        ConfigurationError: as ``bring_into``.
    """
    environment = _STARTED_WITH or environment
    path = Path(environment.get(FILE_VARIABLE) or FILE_DEFAULT)
    from_file = read(path) if FILE_VARIABLE in environment or path.is_file() else {}
    return [_told(setting, environment, from_file, path) for setting in SETTINGS]


def read(path: Path) -> dict[str, str]:
    """What a file says, by variable.

    Raises:
        ConfigurationError: it cannot be read, is no TOML, or has keys or values that are none of ours.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
    known = {setting.key: setting for setting in SETTINGS}
    secrets = {f"{setting.key}_file": setting for setting in SETTINGS if setting.is_secret}
    said: dict[str, str] = {}
    problems: list[str] = []
    for key, value in _flat(document):
        if key in secrets and isinstance(value, str):
            said[f"{secrets[key].variable}_FILE"] = value
        elif key not in known:
            problems.append(f"{key} is no setting; {_nearest(key, [*known, *secrets])}")
        elif isinstance(value, bool) != (known[key].kind == "flag") or not isinstance(value, _TYPES[known[key].kind]):
            problems.append(f"{key} = {value!r} has to be {_article(known[key].kind)}")
        else:
            said[known[key].variable] = str(value)
    if problems:
        raise ConfigurationError(f"{path} is not right:\n  - " + "\n  - ".join(problems))
    return said


def misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    """Lines about variables that are nearly ours. Others with our prefix may be anybody's, as Kubernetes' are."""
    known = [variable for setting in SETTINGS for variable in _variables(setting)] + [FILE_VARIABLE]
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
            if near:
                yield f"the variable {name} means nothing here; did you mean {near[0]}?"


def shown(one: InForce) -> str:
    """The value, fit to be shown."""
    if one.setting.is_url:
        return shown_url(one.value)
    return HIDDEN if one.setting.is_secret and one.value else one.value


def _told(setting: Setting, environment: Mapping[str, str], from_file: Mapping[str, str], path: Path) -> InForce:
    for source, origin, said_in in (
        (environment, "environment", setting.variable),
        (from_file, "file", f"{path}: {setting.key}"),
    ):
        if setting.variable in source:
            return InForce(setting, source[setting.variable], origin, said_in)  # type: ignore[arg-type]
        if setting.is_secret and (secret := source.get(f"{setting.variable}_FILE")):
            return InForce(setting, _secret(setting, secret), origin, secret)  # type: ignore[arg-type]
    return InForce(setting, setting.default, "default", "")


def _secret(setting: Setting, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the file {path!r} for {setting.key} cannot be read: {reason}") from error


def _variables(setting: Setting) -> tuple[str, ...]:
    return (setting.variable, f"{setting.variable}_FILE") if setting.is_secret else (setting.variable,)


def _flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "`choreo config` lists those that are"


def _article(kind: Kind) -> str:
    return {"text": "a text", "integer": "a whole number", "number": "a number", "flag": "true or false"}[kind]
