"""The rooms of a run; the notebook tells the story."""
