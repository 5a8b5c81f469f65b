"""Recipes, and what turns one into a trained and measured scaffold."""
