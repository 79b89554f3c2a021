"""The job itself: from a start to the end of an attempt, and both trainers side by side.

In comes everything above, put together in `start`.
"""
