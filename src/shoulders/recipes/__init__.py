"""Named runs, and what turns a recipe into a trained and measured scaffold."""
