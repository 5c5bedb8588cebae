"""What really runs the servers: processes, units, containers, pods; or, for want of that, whether they answer.

Each kind is a module of this package and implements Backends; ``memory`` is the double. ``choose`` picks one.
"""
