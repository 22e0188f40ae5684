"""How a dead letter says what it is: the original record as it was, and these headers behind its own (rule 18)."""

from __future__ import annotations

from choreo.broker.port import Headers, Message

TEXT_BYTES_MAX = 2_000


def dead_letter_headers(message: Message, *, error: str, about: str, source: str) -> Headers:
    """The headers that tell why a message was refused, by whom, and where it was found.

    Args:
        message: the refused one.
        error: a word for programs: what kind of error it was.
        about: a sentence for people, cut if it is long.
        source: who refused it, as in ``ce_source`` ("/choreo/payment").
    """
    return (
        ("choreo_error_type", error.encode()),
        ("choreo_error_message", about.encode("utf-8", "replace")[:TEXT_BYTES_MAX]),
        ("choreo_error_source", source.encode()),
        ("choreo_original_topic", message.topic.encode()),
        ("choreo_original_partition", b"%d" % message.partition),
        ("choreo_original_offset", b"%d" % message.offset),
        ("choreo_original_timestamp", b"%d" % message.timestamp_ms),
    )
