"""Stops idle servers, paced and verified. It knows no other feature."""
