"""``hubguard prune``: plans, applies and undoes the removal of users, through the running guard or offline."""
