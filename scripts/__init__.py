"""What keeps the repository in order; `check` runs every static check."""
