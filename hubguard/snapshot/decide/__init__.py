"""Judges snapshots: real use, outages, the brake. It reads no clock and does no I/O."""
