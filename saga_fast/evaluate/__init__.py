"""Evaluation of a trained encoder."""
