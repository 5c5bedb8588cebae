"""Pruning again and again: reading, planning, carrying out, and what is remembered between."""
