"""A campaign as a page: figures, tables, text."""
