"""Where objects are kept: one contract, a folder on a volume and an S3 bucket that keep it.

In come a URI, keys and bytes. Nothing here knows what the objects mean.
"""
