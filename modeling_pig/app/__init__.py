"""The app behind `pig app`: a page that searches an index, plays what it finds and shows why.

Its server is plain Starlette with one page of our own, not gradio: gradio writes an upload to a folder that it serves
from, copies each file that it plays into a cache, and asks its makers' hosts for fonts and versions.
"""
