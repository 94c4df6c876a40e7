"""Methods side by side: a ready study for each domain, and how its runs are read."""
