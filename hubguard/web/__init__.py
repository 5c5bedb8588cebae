"""Pages, REST API and metrics over one guard. Words that people read are in present.

Nothing here decides, or talks to the hub about servers: it asks the guard, and tells what it says.
"""
