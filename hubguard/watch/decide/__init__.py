"""Decides which alerts are raised and cleared, and how much time is left. It reads no clock and does no I/O."""
