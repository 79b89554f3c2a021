"""What people see of a run: rows of metrics, the trackers that show them, the report.

What comes in are numbers, and the store in which they are kept. Nothing here changes the training.
"""
