"""What is computed: the numbers of an Engram layer, its hash, its rows, its weights and its token ids."""
