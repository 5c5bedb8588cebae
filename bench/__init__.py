"""Benchmarks: HubGuard side by side with what it replaces, on real hubs."""
