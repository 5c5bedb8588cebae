"""Changes the world: the executor, and the lease that allows it to. Never observes by itself beyond its second look."""
