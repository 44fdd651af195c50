"""From "a request for this model" to "a lease on that replica", decided anew for each request."""
