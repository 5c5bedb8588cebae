"""Reads the signals, a module for each source. It decides nothing."""
