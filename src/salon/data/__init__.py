"""Shards -> Batch. The only room that imports webdataset."""
