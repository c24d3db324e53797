"""A small world that is specified before it is drawn, so that a prompt can be checked exactly.

`world` says what a scene is, `captions` puts it into words, `render` draws it. The data set
(`salon.data.shapes`) and the oracle (`salon.metrics.oracle`) both stand on these three.
"""
