"""The job itself: from a start to the end of an attempt, and both trainers side by side.

What comes in are all the rooms before this one; `start` puts them together.
"""
