"""Watches the proxy through a canary route and has a lost table restored. It knows no feature."""
