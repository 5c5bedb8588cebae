"""What really runs the servers: processes, units, containers and pods. It decides nothing.

Each kind is a module of this package and implements Backends. ``choose`` picks one.
"""
