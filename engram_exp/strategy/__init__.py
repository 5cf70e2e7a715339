"""In what order it is computed: the stages of a strategy, and how they follow each other."""
