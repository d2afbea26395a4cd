"""``saga-fast profile``: the throughput of each stage on this machine, compared with its limit."""
