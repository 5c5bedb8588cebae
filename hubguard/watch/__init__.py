"""Watches hub, proxy and machine, and says what is wrong before users notice. It knows no other feature."""
