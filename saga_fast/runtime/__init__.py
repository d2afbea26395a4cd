"""What a run needs of its machine: files, processes, the device, signals, and the figures that it writes down."""
