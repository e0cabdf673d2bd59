"""Looking at running processes: estimates of what merging would save, the live view, and bringing one in."""
