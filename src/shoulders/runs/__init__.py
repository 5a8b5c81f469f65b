"""Recipes, and the code that trains and measures a scaffold by a recipe."""
