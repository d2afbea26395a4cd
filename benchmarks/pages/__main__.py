"""Writes the generated parts of all pages: ``python -m benchmarks.pages``."""

from __future__ import annotations

from benchmarks.pages.parts import PAGES, rewritten


def main() -> None:
    for page in PAGES:
        page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
