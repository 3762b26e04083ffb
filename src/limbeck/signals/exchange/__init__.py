"""Signals in other people's files, and in Parquet for cold storage."""
