"""What a checkpoint holds: weights, moments, random numbers, and how far the training is.

In come a model and its optimizer, or a folder with files. Nothing here knows where it is stored.
"""
