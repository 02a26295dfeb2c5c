"""Other systems' APIs, as translations onto the engine: their clients work unchanged."""
