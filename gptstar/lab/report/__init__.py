"""A study as tables, markdown, a page, pictures and an entry of the log."""
