"""Images at addresses: tar files and parquet files that are read over a network, through fsspec."""
