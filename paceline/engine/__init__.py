"""The one place that knows torch models. The door is `paceline.engine.runner`."""
