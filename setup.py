"""The long description: README.md, in which links to files of the repository are only their text."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")

setup(
    long_description=re.sub(r"\[([^]]+)]\((?!https?:)[^)]+\)", r"\1", README),
    long_description_content_type="text/markdown",
)
