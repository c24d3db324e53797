"""Many runs by one command (`train.py -m`): each survives the others' failures, and its own.

`plan` knows the jobs before they start, `job` is what runs in each of them, here or in another
process, and `table` tells at the end what became of them. They speak through files: `status.json`
in a job's folder, `jobs.json` in the folder of all.
"""
