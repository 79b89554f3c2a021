"""What a checkpoint holds: weights, moments, random numbers, and how far the training is.

What comes in is a model with its optimizer, or a folder with files. Where these are stored is not
known here.
"""
