"""The outlets of bus.stats(): where what is counted can be seen from outside.

Import what you need; nothing here is imported by ``import ftbus``:

- prometheus: a collector for prometheus_client (the extra ``prometheus``)
- opentelemetry: instruments, and spans around handlers (``otel``)
- logs: records of the standard logging with structured fields
- stats_server, stats_client: ``bus.serve_stats()`` and who asks it
- top: ``python -m ftbus top``, a live view of a running process (``top``)
- dashboard: ``bus.serve_dashboard()``, the same as a page for the browser

server.py is what both servers stand on, sockets.py where their files lie, and
snapshots.py what they send.
"""
