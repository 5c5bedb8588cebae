"""Removes stale users by a reviewed plan, with undo. It knows no other feature."""
