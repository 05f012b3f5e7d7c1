"""HTTP over a Unix socket: requests, routes, bounds and deadlines. It must not know the index."""
