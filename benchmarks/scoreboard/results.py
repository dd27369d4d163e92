"""Results of single runs, as lines of JSON that survive an interruption."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Key = tuple[str, str, int]
# A run that was cut off has its result: more time was not allowed. One that failed is tried again.
FINAL = ("done", "not finished")


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(dict(record)) + "\n")


def read(path: Path) -> dict[Key, Record]:
    """The last record of each posterior, method and seed."""
    if not path.exists():
        return {}
    records = (parsed(line) for line in path.read_text().splitlines())
    return {(r["posterior"], r["method"], r["seed"]): r for r in records if r is not None}


def parsed(line: str) -> Record | None:
    """A record, or None for what an interruption left of one."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def missing(keys: Iterable[Key], found: Mapping[Key, Record]) -> list[Key]:
    """The runs that still have to be made."""
    return [key for key in keys if key not in found or found[key]["status"] not in FINAL]


def chosen(found: Mapping[Key, Record], method: str, posterior: str | None = None) -> list[Record]:
    """The finished records of a method, in the order of their seeds."""
    kept = {key: record for key, record in found.items() if key[1] == method and posterior in (None, key[0])}
    return [record for _, record in sorted(kept.items()) if record["status"] == "done"]
