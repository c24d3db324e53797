"""Captions -> Text. open_clip is imported here (and in `salon.metrics`) only."""
