"""Lease, attempt and verification: nothing outside is changed except through here. It knows no feature."""
