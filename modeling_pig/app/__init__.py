"""Web app and HTTP API behind `pig app`: search an index, play the results and explain each result.

The server is FastAPI with a single page, not gradio: gradio writes uploads to a folder that it serves, copies
each played file into a cache, and requests fonts and versions from hosts of its makers.
"""
