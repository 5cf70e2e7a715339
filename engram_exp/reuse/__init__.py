"""Which rows come again, how soon, and what a cache would make of it: no device needed."""
