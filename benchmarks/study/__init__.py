"""When do attention crops help? Many small runs on images with known objects; docs/study.md has the results.

``arms.py`` holds what is compared, ``runs.py`` makes a run into a row, ``boxes.py`` scores ways to make boxes,
``__main__.py`` runs the stages and ``plots.py`` draws the picture of docs/study.md. Its tables are made by
``benchmarks.pages``.
"""
