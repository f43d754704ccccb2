"""Nothing of its own: what holds for the tests holds here, see ../conftest.py."""
