"""The folder engine: images straight from a folder or from tar files."""
