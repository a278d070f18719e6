"""KServe v2 over HTTP: routes, JSON and the binary tensor extension, on httptools and the event loop."""
