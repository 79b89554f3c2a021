"""What lies in the store under one run: record, lease, journal of attempts, checkpoints.

In comes a store. This room decides who may write, what counts as a checkpoint and what goes.
"""
