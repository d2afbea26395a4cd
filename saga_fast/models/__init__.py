"""The encoder, and how it runs: number formats, batch norm over all processes, the compiled forward pass."""
