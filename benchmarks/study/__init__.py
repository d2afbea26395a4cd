"""When do attention crops help? Many small runs on images with known objects; docs/study.md tells what came of them.

``arms.py`` says what is compared, ``runs.py`` makes one run into one row, ``boxes.py`` scores ways to make boxes,
``__main__.py`` runs the stages, ``document.py`` writes the tables of docs/study.md and ``plots.py`` its pictures.
"""
