"""The HTTP door: OpenAI's API, probes, metrics, and the web page. It knows requests from `coordinator.service` only."""
