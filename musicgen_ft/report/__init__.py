"""Reports to look at and listen to: HTML pages that are one file, and tables for the terminal."""
