"""Text from a trained model: the model one token at a time, the choice of a token, the text.

What comes in are weights and a prompt.
"""
