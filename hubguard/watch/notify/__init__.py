"""Notifies people of alerts: receivers, and the queue of notices. It decides nothing, and a dead receiver blocks nothing."""
