"""HTTP over the batching engine: the REST contract, the demo's, OpenAI's, and the web page."""
