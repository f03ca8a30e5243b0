"""Results on disk: none is lost when the program is killed, and none is counted twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mcbn.data.files import expanded


class Journal:
    """What has been computed, a line a unit of work, appended as it comes.

    A line that was cut short, because the program was killed while it wrote, is dropped when the
    journal is opened again: its unit is computed anew. A unit is known by all of its fields, so a
    result is never taken for that of other settings, and one journal can serve many runs.

    Args:
        path: The file; it is made with the first line.

    Raises:
        ValueError: A line other than the last is no entry of a journal.

    Example:
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Unit:
        ...     split: int
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Journal(f"{folder}/journal").add(Unit(1), {"rmse": 2.0})
        ...     journal = Journal(f"{folder}/journal")
        >>> journal.get(Unit(1)), journal.get(Unit(2))
        ({'rmse': 2.0}, None)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expanded(path)
        self._records: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                self._records.setdefault(_key(entry["unit"]), entry["result"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is no entry of a journal; delete the line to have "
                    "its unit computed again."
                ) from error

    def get(self, unit: Any) -> dict[str, Any] | None:
        """The result of a unit, a dataclass; None if there is none yet."""
        return self._records.get(_key(_fields(unit)))

    def add(self, unit: Any, result: Mapping[str, Any]) -> None:
        """Append a result; when this returns, it is on disk."""
        fields = _fields(unit)
        line = json.dumps({"unit": fields, "result": result}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        # As the next reader will find it.
        entry = json.loads(line)
        self._records.setdefault(_key(entry["unit"]), entry["result"])


def _fields(unit: Any) -> dict[str, Any]:
    return {"kind": type(unit).__name__, **asdict(unit)}


def _key(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)
