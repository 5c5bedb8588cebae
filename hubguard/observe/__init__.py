"""Assembles a Snapshot from the clients. Never acts."""
