"""A real Kafka that lets nobody in without a certificate, a password or a token, and does nothing that no ACL allows.

Its plain listener is for the test's own set-up; who comes there is a super-user.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, CreateAclsRequest_v1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from choreo.access import Principal
from deploy.kafka.local_kafka import LocalKafka, free_port
from tests.certificates import Authority

AUDIENCE = "kafka"
ISSUER = "https://id.test"
SESSION = "session_timeout_ms=6000&heartbeat_interval_ms=250"


# Kafka's protocol, KIP-140: numbers of resources, operations, patterns and permissions.
RESOURCES = {"topic": 2, "group": 3}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
LITERAL, ALLOW = 3, 3


class CreateAcls(CreateAclsRequest):
    """Many at once."""

    def __init__(self, creations: list[tuple[object, ...]]) -> None:
        self.creations = creations

    def build(self, request_struct_class: type[CreateAclsRequest_v1]) -> CreateAclsRequest_v1:
        return request_struct_class(self.creations)


class SecureKafka:
    """One broker with a TLS listener that asks for certificates, and a SASL one over TLS.

    Args:
        directory: for certificates and keys.
        users: who may come with SCRAM, by name; the password is the name and ``-secret``.
        authorizing: whether everything that no ACL allows is refused.
    """

    def __init__(self, directory: Path, users: Sequence[str], *, authorizing: bool = False) -> None:
        self.authority = Authority(directory)
        self.tls_port, self.sasl_port, port = free_port(), free_port(), free_port()
        self.identity = Identity()
        jwks = directory / "jwks.json"
        jwks.write_text(json.dumps({"keys": [self.identity.jwk()]}))
        self.kafka = LocalKafka(
            port=port,
            properties={
                **self._listeners(port),
                **self._stores(directory),
                **self._sasl(jwks),
                **(AUTHORIZER if authorizing else {}),
            },
            format_options=[
                option
                for user in users
                for option in ("--add-scram", f"SCRAM-SHA-512=[name={user},password={password_of(user)}]")
            ],
            jvm_options=[f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}"],
        )

    def tls_url(self, *, certificate: tuple[Path, Path] | None = None) -> str:
        """Of the listener that wants a certificate."""
        shown = "" if certificate is None else f"&cert_file={certificate[0]}&key_file={certificate[1]}"
        return f"kafka://127.0.0.1:{self.tls_port}?security=tls&ca_file={self.authority.ca_file}{shown}&{SESSION}"

    def sasl_url(self, options: str) -> str:
        """Of the listener that wants a password or a token."""
        url = f"kafka://127.0.0.1:{self.sasl_port}?security=sasl_tls&ca_file={self.authority.ca_file}"
        return f"{url}&{options}&{SESSION}"

    def user_url(self, user: str) -> str:
        """The same, for who comes with SCRAM; the password stands in a file."""
        secret = self.authority.ca_file.with_name(f"{user}.password")
        secret.write_text(password_of(user) + "\n")
        return self.sasl_url(f"sasl=scram-sha-512&username={user}&password_file={secret}")

    async def allow(self, principals: Sequence[Principal]) -> None:
        """Put these rights into force, each for the user ``choreo-`` and its role."""
        creations: list[tuple[object, ...]] = [
            (
                RESOURCES[grant.resource],
                grant.name,
                LITERAL,
                f"User:choreo-{one.role}",
                "*",
                OPERATIONS[operation],
                ALLOW,
            )
            for one in principals
            for grant in one.grants
            for operation in grant.operations
        ]
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.kafka.port}")
        await admin.start()
        try:
            response = await admin._send_request(CreateAcls(creations))
            assert {code for code, _ in response.creation_responses} == {0}
        finally:
            await admin.close()

    def __enter__(self) -> SecureKafka:
        self.kafka.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kafka.stop()

    def _listeners(self, port: int) -> dict[str, str]:
        ours = {"PLAINTEXT": port, "TLS": self.tls_port, "SASL": self.sasl_port}
        controller = free_port()
        addresses = [f"{name}://127.0.0.1:{number}" for name, number in ours.items()]
        return {
            "listeners": ",".join([*addresses, f"CONTROLLER://127.0.0.1:{controller}"]),
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "advertised.listeners": ",".join(addresses),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,SASL:SASL_SSL",
        }

    def _stores(self, directory: Path) -> dict[str, str]:
        cert_file, key_file = self.authority.issue("broker")
        together = directory / "broker.pem"
        together.write_bytes(key_file.read_bytes() + cert_file.read_bytes())
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(together),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.ca_file),
            "listener.name.tls.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/,DEFAULT",
        }

    def _sasl(self, jwks: Path) -> dict[str, str]:
        modules = "org.apache.kafka.common.security"
        bearer = "listener.name.sasl.oauthbearer"
        return {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
            f"{bearer}.sasl.jaas.config": f"{modules}.oauthbearer.OAuthBearerLoginModule required;",
            f"{bearer}.sasl.server.callback.handler.class": (
                f"{modules}.oauthbearer.OAuthBearerValidatorCallbackHandler"
            ),
            f"{bearer}.sasl.oauthbearer.jwks.endpoint.url": jwks.as_uri(),
            f"{bearer}.sasl.oauthbearer.expected.audience": AUDIENCE,
            f"{bearer}.sasl.oauthbearer.expected.issuer": ISSUER,
        }


AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",  # the plain listener and the broker itself
    "allow.everyone.if.no.acl.found": "false",
}


def password_of(user: str) -> str:
    return f"{user}-secret"


class Identity:
    """Who signs tokens (RS256), as an identity provider does."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwk(self) -> dict[str, str]:
        public = self._key.public_key().public_numbers()
        return {
            "kty": "RSA",
            "kid": "one",
            "alg": "RS256",
            "use": "sig",
            "n": _base64(public.n.to_bytes(256, "big")),
            "e": _base64(public.e.to_bytes(3, "big")),
        }

    def token(self, subject: str, *, life_s: int = 300) -> str:
        now = int(time.time())
        claims = {"sub": subject, "aud": AUDIENCE, "iss": ISSUER, "iat": now, "exp": now + life_s, "scope": "kafka"}
        head = {"alg": "RS256", "typ": "JWT", "kid": "one"}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        return signed + "." + _base64(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))


class TokenServer:
    """The token endpoint of an identity provider, on the loopback interface.

    Attributes:
        asked: how often a token was given.
    """

    def __init__(self, identity: Identity, clients: dict[str, str], *, life_s: int = 300) -> None:
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                shown = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
                client, _, secret = shown.partition(":")
                if clients.get(client) != secret or form.get("grant_type") != ["client_credentials"]:
                    return self._answer(401, {"error": "invalid_client"})
                outer.asked += 1
                token = identity.token(client, life_s=life_s)
                return self._answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": life_s})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def __enter__(self) -> TokenServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
