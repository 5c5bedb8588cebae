"""The ports to the world outside: each a small protocol, a real client, and an in-memory double that passes the same tests.

This package never decides, and nothing in it knows a policy.
"""
