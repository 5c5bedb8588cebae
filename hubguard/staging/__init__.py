"""Throwaway hubs with seeded users and small servers, for the demo, tests and benchmarks. No real hub's process
imports it."""
