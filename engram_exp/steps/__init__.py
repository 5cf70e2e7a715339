"""How it is computed: a folder for each step, in it one file for each way to do it."""
