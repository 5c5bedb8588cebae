"""Decides who is stale, what a plan holds and what it risks. It reads no clock and does no I/O."""
