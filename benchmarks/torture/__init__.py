"""Faults on purpose: kills, full disks, damaged and hostile files. ``make torture`` runs them by the thousand."""
