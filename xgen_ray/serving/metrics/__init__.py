"""Our metrics: one table of them, what they are read from, and the way into Ray's."""
