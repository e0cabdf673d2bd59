"""The demonstration: one worker pool, measured plain and under udedup."""
