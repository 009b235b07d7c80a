"""The web page, as files; `coordinator/http/pages.py` serves them. No build step, nothing from elsewhere."""
