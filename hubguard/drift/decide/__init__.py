"""Compares what the sources say and follows it over time. It reads no clock and does no I/O."""
