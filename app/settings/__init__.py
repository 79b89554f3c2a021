"""What the user set: every variable with its bounds, help and source, and what they mean together.

In come flags, the environment and `.env`; nobody else reads them. No torch, no network.
"""
