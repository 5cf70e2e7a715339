"""What may be typed: the schema of the configuration, what follows from it, and what is refused."""
