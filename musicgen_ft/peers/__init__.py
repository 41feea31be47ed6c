"""The two generators that people have, each behind one narrow module."""
