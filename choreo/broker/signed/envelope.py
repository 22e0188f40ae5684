"""What a signature covers: where a record lies, what its headers say, and its value.

The signature is the header ``choreo_signature``: the key's id, a dot, and 64 bytes in URL-safe base64 without padding.
It is made with Ed25519 (RFC 8032) over these fields, each behind its length in four bytes, most significant first:

    "choreo-signature-v1", topic, key, then name and value of each header below that is there, then SHA-256 of the value

A record that is copied to another topic, under another key, or with another value or routing header, does not verify.
Headers of others, ``traceparent`` among them, are not covered: proxies and operators may add some.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from choreo.broker.port import Headers

SIGNATURE = "choreo_signature"
CONTEXT = b"choreo-signature-v1"
COVERED = (
    "ce_specversion",
    "ce_id",
    "ce_type",
    "ce_source",
    "ce_subject",
    "content-type",
    "choreo_version",
    "choreo_start",
    "choreo_step",
    "choreo_round",
    "choreo_generation",
)


def covered_bytes(topic: str, key: bytes, value: bytes, headers: Headers) -> bytes:
    """The bytes that are signed. Of a header that is there twice the first counts, as for all readers."""
    found = dict(reversed(headers))
    fields = [CONTEXT, topic.encode(), key]
    for name in COVERED:
        if name in found:
            fields += (name.encode(), found[name])
    fields.append(hashlib.sha256(value).digest())
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def written(key_id: str, signature: bytes) -> bytes:
    """The header's value."""
    return key_id.encode() + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def taken_apart(header: bytes) -> tuple[str, bytes]:
    """The key's id and the signature.

    Raises:
        ValueError: it is no such header.
    """
    key_id, _, text = header.rpartition(b".")
    try:
        return key_id.decode("ascii"), base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeDecodeError, binascii.Error) as error:
        raise ValueError("the header choreo_signature is malformed") from error
