"""Requests on the wire: a client, what its faults mean, and how fast an endpoint is asked."""
