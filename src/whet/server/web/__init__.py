"""The built-in web page: static files, and the documents that it asks for while somebody looks at it."""
