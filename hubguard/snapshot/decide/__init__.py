"""Judges snapshots: real use, outages, the brake. Values in, values out; no clock, no I/O."""
