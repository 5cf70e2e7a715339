"""What runs leave behind: the schema, writing it, loading it, and telling whether it is what was written."""
