"""`align data`: what files of rows hold and what is wrong with them, and a row as the model sees it."""
