"""Both pools on a Ray cluster. `import ray` in here is the library's: imports are absolute."""
