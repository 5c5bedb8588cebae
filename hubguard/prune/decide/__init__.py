"""Decides who is stale, what a plan holds and what it risks. Values in, values out; no clock, no I/O."""
