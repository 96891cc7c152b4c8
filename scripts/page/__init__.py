"""The parts of docs/objectives.md, each read off the code; `objectives_page.py` joins them."""
