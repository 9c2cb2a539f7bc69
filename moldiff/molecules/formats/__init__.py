"""Reading and writing files of molecules, with every record accounted for: one format, one file."""
