"""Data sets as their authors publish them -> LAION-style shards."""
