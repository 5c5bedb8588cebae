"""Compares what the sources say and follows it over time. Values in, values out; no clock, no I/O."""
