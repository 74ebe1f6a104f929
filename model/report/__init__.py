"""`msmlp report`: tables and pictures of runs, the card of a weights folder, its easy and its hard images.

find.py walks folders; read.py and unfinished.py make a `Run` (run.py) of each; tables.py, curves.py and scatter.py show
many. measure.py sends a data set through a weights folder; card.py (with confusion.py and reliability.py) and
gallery.py show what came of it.
"""
