"""The generated parts of README.md and docs/: figures come from benchmarks/results/ and from nowhere else.

``python -m benchmarks.pages`` writes them, and a test compares. A part lies between ``<!-- figures: NAME -->`` and
``<!-- end -->``; ``parts.py`` holds the names.
"""
