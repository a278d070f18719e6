"""When and with whom a request runs. It lives on the server's event loop, without locks; only models' runs leave it."""
