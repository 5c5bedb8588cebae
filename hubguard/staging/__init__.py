"""Throwaway hubs with seeded users and little servers: for the demo, the tests and the benchmarks."""
