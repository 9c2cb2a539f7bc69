"""A file of molecules as one HTML page that works offline: `moldiff view input=FILE` and the same from Python."""

from moldiff.view.page import Page, view

__all__ = ["Page", "view"]
