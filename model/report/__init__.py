"""The model card and the gallery of a weights folder: `msmlp report card` and `msmlp report gallery`.

measure.py runs a data set through every exit; card.py and gallery.py present the outputs, plots.py draws.
"""
