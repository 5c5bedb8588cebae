"""Finds where hub, database, proxy and backends disagree, and repairs it. It knows no other feature."""
