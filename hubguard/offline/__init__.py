"""Pruning straight in the hub's database, for the day the hub won't start; refused while a hub uses it."""
