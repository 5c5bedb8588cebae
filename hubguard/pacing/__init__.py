"""Limits and the budget that every request passes. It sends nothing itself."""
