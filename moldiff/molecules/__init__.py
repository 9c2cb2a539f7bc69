"""What a molecule is: its values, its validity, its identity, its parts, and the files that hold it."""
