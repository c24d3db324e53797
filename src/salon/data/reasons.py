"""Why a sample does not reach a model: a code that stays, and what the report says of it.

What is *bad* is a defect of the data; what is *filtered* was asked for in `data.filters`. The two
are counted apart, so that a strict filter never looks like a broken download.
"""

from __future__ import annotations

# A shard that cannot be fetched now, and perhaps later.
UNREACHABLE = {
    "shard_missing": "no such file, or the server says 404 or 410",
    "shard_refused": "no permission, or the server says 401 or 403",
    "shard_http": "another answer of the server than the file, after all attempts",
    "shard_timeout": "the server was silent for too long, in every attempt",
    "shard_short": "fewer bytes came than the server had announced, in every attempt",
    "shard_unreadable": "the file system or the network failed while it was read",
}
# A whole shard, or what is left of it from the defect on.
SHARD = UNREACHABLE | {
    "shard_compressed": "gzip, bzip2, xz, zstd or zip; expected a plain tar",
    "shard_truncated": "it ends within a member, or without the mark of its end",
    "shard_corrupt": "a header whose checksum or numbers are wrong",
    "header_too_large": "an extended header that is larger than data.limits allows",
}
# One sample.
SAMPLE = {
    "member_too_large": "a member that is larger than data.limits allows",
    "member_not_plain": "a link, a device or a sparse file where a member's bytes should be",
    "duplicate_key": "a key that stood earlier in the shard: its members do not stand together",
    "missing_image": "no picture among its members",
    "missing_caption": "no caption where data.caption looks for one",
    "caption_not_utf8": "bytes that are no UTF-8",
    "caption_empty": "nothing but space",
    "caption_short": "fewer characters than data.caption.min_chars",
    "caption_long": "more characters than data.caption.max_chars",
    "json_too_large": "a json that is larger than data.limits allows",
    "json_invalid": "no json, or too deep, or with an integer of thousands of digits",
    "json_not_object": "a json of something else than names and values",
    "image_empty": "a picture of no bytes",
    "image_unrecognised": "no picture of the formats that are read",
    "image_corrupt": "a picture that cannot be decoded to its end",
    "image_animated": "a picture of more than one frame",
    "image_too_large": "more pixels than data.image.max_pixels",
    "image_too_small": "a side shorter than data.image.min_side",
    "latent_missing": "not all that precompute writes for a sample",
    "latent_corrupt": "a latent or an embedding of another kind or size than the index says",
    "latent_mismatch": "made by other networks, or of other captions, than this run has",
    "image_aspect": "longer, of its shorter side, than data.image.max_aspect",
}
BAD = SHARD | SAMPLE
FILTERED = "filter:"  # and the name of the filter
ASKED = {f"{FILTERED}bucket": "too few of its proportions for a batch: data.buckets, data.window"}


class Bad(Exception):
    """Something in a shard cannot be used. Counted, never fatal by itself."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in BAD, reason
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
