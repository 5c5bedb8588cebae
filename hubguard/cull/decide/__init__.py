"""Decides which servers and users are due. It reads no clock and does no I/O."""
