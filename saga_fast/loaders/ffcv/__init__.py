"""FFCV files: packed by ``saga-fast pack``, opened as a source, decoded and cropped in one compiled function."""
