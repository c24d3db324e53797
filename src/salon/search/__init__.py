"""Search for hyper-parameters: a study of many runs, told as a table, a page and a W&B run.

A study is the folder of a multirun that `conf/sweep/*.yaml` started. Hydra's sweeper proposes and
`train.py` trains; what is here numbers the trials, goes on with a study, and reports on it.
"""
