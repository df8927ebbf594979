"""Where processes run: one backend a file."""
