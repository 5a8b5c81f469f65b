"""Losses of short runs on the tiny Llama, as they were when each method was written."""

GOLDEN: dict[str, list[float]] = {
    "soft_prompt": [6.085535, 6.002124, 5.810925, 5.726145],
    "soft_prompt_suffix": [5.896091, 5.837939, 5.820117, 5.70239],
    "input_prompt": [5.776361, 5.732476, 5.697772, 5.655815],
    "input_prompt_base": [6.085535, 5.84715, 5.740406, 5.707798],
    "self": [6.085535, 5.799412, 5.748342, 5.711808],
    "recursion": [6.210183, 6.223158, 6.134443, 6.004715],
    "residual": [6.085535, 6.001586, 5.809659, 5.720617],
}
