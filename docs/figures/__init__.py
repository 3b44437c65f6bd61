"""The pictures of the guide, and the numbers it quotes: `python -m docs.figures`, or `make figures`."""
