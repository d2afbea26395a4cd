"""The dali engine: JPEGs decoded by NVIDIA DALI."""
