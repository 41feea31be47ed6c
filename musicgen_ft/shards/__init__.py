"""Codes on disk: the shard format, its writer, its index, and the order in which training reads it."""
