"""Judging molecules, whoever made them."""
