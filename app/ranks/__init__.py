"""Several processes that make the same steps: started, joined, agreed with each other.

`launcher` runs in the process that starts them and does not train; the rest runs in each of them.
"""
