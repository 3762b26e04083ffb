"""Soft labels from a served teacher: what it thinks of a text that is given to it, token by token."""
