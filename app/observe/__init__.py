"""What people see of a run: rows of metrics, the trackers that show them, the report.

In come numbers, and the store in which they are kept. Nothing here changes the training.
"""
