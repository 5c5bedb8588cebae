"""Limits and the budget: everything that is sent passes it. It sends nothing itself."""
