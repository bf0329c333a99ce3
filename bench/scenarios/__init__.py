"""One file per family of scenarios; `SCENARIOS` of serving.py lists them."""
