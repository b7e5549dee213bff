"""Programs that are run once in a while, each alone."""
