"""Decides which servers are due. Values in, values out; no clock, no I/O."""
