"""emoji-64, the image model that comes with Quintet: a 7.5 M parameter network trained on Noto Color Emoji."""
