"""Writes the files that stand beside this one: a JSON Schema for each record, an AsyncAPI document for the order saga.

Run it from the project's root:

    python -m schemas.generate           writes them
    python -m schemas.generate --check   changes nothing; exits 1 and lists the files that differ
    python -m schemas.generate --release VERSION   keeps it under released/, for what comes to be held against
"""

# ruff: noqa: INP001, T201 -- a script, not a package, and its output is its answer

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from choreo.messages.compatibility import incompatibilities
from choreo.messages.schema import asyncapi, json_schemas
from services.order import ORDER

FOLDER = Path(__file__).parent
RELEASED = FOLDER / "released"
RECORD = "record.schema.json"


def generated() -> dict[str, str]:
    """The text of every file, by file name."""
    documents = {f"{name}.schema.json": document for name, document in json_schemas().items()}
    documents[f"{ORDER.name}.asyncapi.json"] = asyncapi(ORDER)
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in documents.items()}


def drifted() -> list[str]:
    """The files that differ from what the code says: changed, missing, or left over."""
    wanted = generated()
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def broken() -> list[str]:
    """What a reader or a log of an earlier release would break on, with a remedy each."""
    new = json.loads(generated()[RECORD])
    return [
        f"since {path.parent.name}: {line}"
        for path in sorted(RELEASED.glob(f"*/{RECORD}"))
        for line in incompatibilities(json.loads(path.read_text(encoding="utf-8")), new)
    ]


def main(arguments: list[str]) -> int:
    """The script; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m schemas.generate", description="Write the schemas.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file differs")
    parser.add_argument("--release", metavar="VERSION", help="keep the schema of all records under released/VERSION")
    drift = drifted()
    version = parser.parse_args(arguments).release
    if version is not None:
        if drift or broken():
            print("\n".join([*(f"schemas/{name} differs from the code" for name in drift), *broken()]))
            return 1
        (RELEASED / version).mkdir(parents=True)
        (RELEASED / version / RECORD).write_text((FOLDER / RECORD).read_text(encoding="utf-8"), encoding="utf-8")
        return 0
    if parser.parse_args(arguments).check:
        for name in drift:
            print(f"schemas/{name} differs from the code; run python -m schemas.generate")
        return 1 if drift else 0
    wanted = generated()
    for name in drift:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
