"""The dashboard: pages drawn on the server, live by one small script.

``pages`` are the pages and ``forms`` what they send back; ``graph``, ``waterfall`` and ``chart`` lay out what templates
draw as SVG, without I/O; ``rendering`` has the templates and how values are shown. Everything works without the script;
with it, the parts of a page that are marked live are fetched again when the log has changed.
"""
