"""What watches a run: samples, quality, EMA, cost, checkpoints, loggers.

They see the contract of `salon.models.base` and no family by name. wandb is imported here only.
"""
