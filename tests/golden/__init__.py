"""Losses of short runs on the tiny Llama, as they were when each method was written."""

GOLDEN: dict[str, list[float]] = {
    "soft_prompt": [6.085535, 6.002124, 5.810925, 5.726145],
    "soft_prompt_suffix": [5.896091, 5.837939, 5.820117, 5.70239],
    "input_prompt": [5.855548, 5.746387, 5.735671, 5.668388],
    "input_prompt_base": [6.085535, 5.794328, 5.741871, 5.690278],
    "self": [6.085535, 5.775394, 5.746059, 5.689126],
}
