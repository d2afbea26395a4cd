"""Join the results of several runs of one benchmark: ``python tools/join_results.py OUT EARLIER.json ... LATEST.json``.

A run may measure some of the rows only (``benchmarks/gpu.py --sections``). A later file's rows take the places of all
earlier rows with their section and name; the remaining earlier ones are kept with their ``commit``, but for errors.
Everything else is the latest file's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def joined(documents: Sequence[Document]) -> Document:
    """The content of these files, the latest last.

    Raises:
        ValueError: runs on different hardware.
    """
    latest = documents[-1]
    rows: list[dict[str, Any]] = []
    for document in documents:
        if document["hardware"]["gpu"] != latest["hardware"]["gpu"]:
            raise ValueError(f"{document['hardware']['gpu']} is not {latest['hardware']['gpu']}")
        new = {_key(row) for row in document["rows"]}
        rows = [row for row in rows if _key(row) not in new and "error" not in row]
        mark = {} if document["commit"] == latest["commit"] else {"commit": document["commit"]}
        rows += [row | mark for row in document["rows"]]
    return latest | {"command": " && ".join(each["command"] for each in documents), "rows": rows}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("section"), row["name"]


def main() -> None:
    out, *paths = map(Path, sys.argv[1:])
    content = joined([json.loads(path.read_text(encoding="utf-8")) for path in paths])
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
