"""One file for each revision of the schema; a file that was released is never changed."""
