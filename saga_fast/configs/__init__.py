"""Configs: one complete YAML file per experiment."""
