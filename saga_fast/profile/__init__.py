"""How fast each stage is on this machine, beside its own limit: what ``saga-fast profile`` measures."""
