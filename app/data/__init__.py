"""From DATASET to micro-batches: sources of text, the tokenizer, token shards, and their order.

In come the data settings, and a store for the token cache. Nothing here knows a run or a model.
"""
