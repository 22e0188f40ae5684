"""How brokers are reached: TLS and SASL, and the secrets they need.

    kafka://broker:9093?security=tls&ca_file=/etc/choreo/ca.pem
    kafka://broker:9093?security=tls&ca_file=…&cert_file=…&key_file=…                       mutual TLS
    kafka://broker:9093?security=sasl_tls&sasl=scram-sha-512&username=payment
    kafka://broker:9093?security=sasl_tls&sasl=oauthbearer&token_url=https://id.example/token&token_client_id=payment

Every option may also be an environment variable, ``CHOREO_KAFKA_`` and its name in capitals; the URL's comes first.
Secrets (``password``, ``key_password``, ``token_client_secret``) are no options of the URL, since it is logged. They
are read from the variable of that name or from the file that ``…_file`` names.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from choreo.broker.kafka.token import ClientCredentials, TokenProvider
from choreo.errors import ConfigurationError

VARIABLE = "CHOREO_KAFKA_"
SECRETS = ("password", "key_password", "token_client_secret")

# As Kafka calls them, by our words: what is on the wire, and who proves to be whom.
PROTOCOLS = {"plaintext": "PLAINTEXT", "tls": "SSL", "sasl_tls": "SASL_SSL", "sasl_plaintext": "SASL_PLAINTEXT"}
MECHANISMS = {
    "plain": "PLAIN",
    "scram-sha-256": "SCRAM-SHA-256",
    "scram-sha-512": "SCRAM-SHA-512",
    "oauthbearer": "OAUTHBEARER",
}
NEEDED = {
    "plain": ("username", "password"),
    "scram-sha-256": ("username", "password"),
    "scram-sha-512": ("username", "password"),
    "oauthbearer": ("token_url", "token_client_id", "token_client_secret"),
}


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """What the URL and the environment say of security. Without anything said it is plain text, to this machine alone.

    Attributes:
        security: ``tls``, ``sasl_tls``, ``plaintext`` or ``sasl_plaintext``; empty if nothing was said.
        ca_file: who may have signed the brokers' certificates, PEM; the system's authorities if empty.
        cert_file: our own certificate and its chain, PEM, for mutual TLS.
        key_file: its private key, PEM.
        key_password_file: the password of that key.
        sasl: ``scram-sha-512``, ``scram-sha-256``, ``oauthbearer``, or ``plain``.
        username: for all but ``oauthbearer``.
        password_file: for all but ``oauthbearer``.
        token_url: where tokens are had, by the client credentials grant of OAuth 2.0 (RFC 6749, 4.4).
        token_client_id: who asks for the token.
        token_client_secret_file: and shows this.
        token_scope: what is asked for; nothing if empty.
        token_ca_file: who may have signed the certificate of ``token_url``; the system's authorities if empty.
        secrets: what the secrets are, by name; never shown.
    """

    security: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    key_password_file: str = ""
    sasl: str = ""
    username: str = ""
    password_file: str = ""
    token_url: str = ""
    token_client_id: str = ""
    token_client_secret_file: str = ""
    token_scope: str = ""
    token_ca_file: str = ""
    secrets: Mapping[str, str] = {}

    def __rich_repr__(self) -> Any:
        for name in OPTIONS:
            yield name, getattr(self, name), ""

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in OPTIONS if getattr(self, name))
        return f"Security({said})"

    @property
    def has_tls(self) -> bool:
        return self.security in ("tls", "sasl_tls")

    @property
    def has_sasl(self) -> bool:
        return self.security in ("sasl_tls", "sasl_plaintext")

    def connection(self) -> dict[str, Any]:
        """What aiokafka is told. Files are read now, so that a client that is opened again has the renewed ones.

        Raises:
            ConfigurationError: a file cannot be read, or is no certificate or key.
        """
        told: dict[str, Any] = {"security_protocol": PROTOCOLS[self.security or "plaintext"]}
        if self.has_tls:
            told["ssl_context"] = tls_context(
                self.ca_file, self.cert_file, self.key_file, self.secrets.get("key_password") or None
            )
        if self.has_sasl:
            told["sasl_mechanism"] = MECHANISMS[self.sasl]
            if self.sasl == "oauthbearer":
                told["sasl_oauth_token_provider"] = TokenProvider(
                    ClientCredentials(
                        url=self.token_url,
                        client_id=self.token_client_id,
                        client_secret=self.secrets["token_client_secret"],
                        scope=self.token_scope,
                        context=tls_context(self.token_ca_file) if self.token_url.startswith("https:") else None,
                    )
                )
            else:
                told["sasl_plain_username"] = self.username
                told["sasl_plain_password"] = self.secrets["password"]
        return told


OPTIONS = tuple(field.name for field in msgspec.structs.fields(Security) if field.name != "secrets")


def security_of(said: Mapping[str, str], environment: Mapping[str, str], hosts: Sequence[str]) -> Security:
    """What holds, from the URL's options, the environment and the hosts, checked as a whole.

    Raises:
        ConfigurationError: it names every option that is wrong or missing, and what to do.
    """
    options = {name: said.get(name, environment.get(VARIABLE + name.upper(), "")) for name in OPTIONS}
    security = Security(**options, secrets=_secrets(options, environment))
    problems = list(_problems(security, hosts))
    if problems:
        raise ConfigurationError("the connection to Kafka is not safe or not complete:\n  - " + "\n  - ".join(problems))
    return security


def tls_context(
    ca_file: str = "", cert_file: str = "", key_file: str = "", key_password: str | None = None
) -> ssl.SSLContext:
    """A client's TLS context: certificates and host names are verified, TLS 1.2 at least.

    Raises:
        ConfigurationError: a file cannot be read, or holds something else.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"ca_file {ca_file!r} cannot be used: {_reason(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert_file:
        try:
            # A function, since OpenSSL would ask on the terminal for a password that is missing.
            context.load_cert_chain(cert_file, key_file, password=lambda: key_password or "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cert_file {cert_file!r} and key_file {key_file!r} cannot be used: {_reason(error)}"
            ) from error
    return context


def _secrets(options: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in SECRETS:
        if path := options[f"{name}_file"]:
            try:
                found[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{name}_file {path!r} cannot be read: {_reason(error)}") from error
        elif value := environment.get(VARIABLE + name.upper()):
            found[name] = value
    return found


def _problems(said: Security, hosts: Sequence[str]) -> Sequence[str]:
    if said.security and said.security not in PROTOCOLS:
        return [f"security={said.security!r} is none of {', '.join(PROTOCOLS)}"]
    problems: list[str] = []
    remote = [host for host in hosts if not is_loopback(host)]
    if not said.security and remote:
        problems.append(
            f"{', '.join(remote)} would be reached in plain text, which anyone on the way can read and change; "
            "add ?security=tls or ?security=sasl_tls, or ?security=plaintext if that is meant"
        )
    if bool(said.cert_file) != bool(said.key_file):
        problems.append("cert_file and key_file belong together; one of them is missing")
    tls_options = [name for name in ("ca_file", "cert_file", "key_file") if getattr(said, name)]
    if tls_options and not said.has_tls:
        problems.append(f"{', '.join(tls_options)} said without TLS; add security=tls or security=sasl_tls")
    if said.sasl and not said.has_sasl:
        problems.append(f"sasl={said.sasl} said without SASL; add security=sasl_tls")
    if said.has_sasl:
        problems += _sasl_problems(said)
    return problems


def _sasl_problems(said: Security) -> Sequence[str]:
    if said.sasl not in MECHANISMS:
        return [f"sasl={said.sasl!r} is none of {', '.join(MECHANISMS)}"]
    problems = [
        f"{name} is missing for sasl={said.sasl}; {_where(name)}"
        for name in NEEDED[said.sasl]
        if not (said.secrets.get(name) if name in SECRETS else getattr(said, name))
    ]
    if said.sasl == "plain" and not said.has_tls:
        problems.append("sasl=plain sends the password as it is; use security=sasl_tls, or a scram mechanism")
    if said.token_url and not said.token_url.startswith("https://"):
        host = said.token_url.removeprefix("http://").partition("/")[0]
        if not said.token_url.startswith("http://") or not is_loopback(host):
            problems.append(f"token_url {said.token_url!r} has to be https://, since a secret is sent there")
    return problems


def _where(name: str) -> str:
    if name in SECRETS:
        return f"set {VARIABLE}{name.upper()}, or {name}_file to a file that holds it"
    return f"set the option {name} or {VARIABLE}{name.upper()}"


def is_loopback(host: str) -> bool:
    """Whether ``host`` or ``host:port`` is this machine by its name or address alone."""
    name = host if host.count(":") > 1 and not host.startswith("[") else host.rpartition(":")[0] or host
    name = name.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
