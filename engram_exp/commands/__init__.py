"""What `python -m engram_exp COMMAND` takes and prints."""
