"""What bigscience/P3 does not store of its data sets: the kind of task, and what an answer is scored by."""

OTHER = "Other"

# Clusters by the beginning of a data set's name: the paper, table 7; those that T0 holds out: Sanh et al. 2021.
CLUSTERS: dict[str, tuple[str, ...]] = {
    "Extractive QA": ("adversarial_qa", "duorc", "quoref", "ropes", "squad", "super_glue_record"),
    "Multiple-choice QA": (
        "cos_e", "cosmos_qa", "dream", "openbookqa", "piqa", "qasc", "quail", "quarel", "quartz", "race_", "sciq",
        "social_i_qa", "super_glue_boolq", "super_glue_multirc", "wiki_hop", "wiqa",
    ),
    "Closed-book QA": ("ai2_arc", "kilt_tasks_hotpotqa", "trivia_qa", "web_questions", "wiki_qa"),
    "Summarization": ("cnn_dailymail", "gigaword", "multi_news", "samsum", "xsum"),
    "Sentiment": ("amazon_polarity", "app_reviews", "imdb", "rotten_tomatoes", "yelp"),
    "Paraphrase identification": ("glue_mrpc", "glue_qqp", "paws"),
    "Topic classification": ("ag_news", "dbpedia_14", "trec"),
    "Coreference resolution": ("super_glue_wsc", "winogrande"),
    "Sentence completion": ("hellaswag", "story_cloze", "super_glue_copa"),
    "Structure-to-text": ("common_gen", "wiki_bio"),
    "Word sense disambiguation": ("super_glue_wic",),
    "Natural language inference": ("anli", "super_glue_cb", "super_glue_rte"),
}  # fmt: skip

# PromptSource's names; a wording with answer choices is scored by accuracy whatever stands here.
METRICS: dict[str, tuple[str, ...]] = {
    "Extractive QA": ("Squad",),
    "Multiple-choice QA": ("Squad",),
    "Closed-book QA": ("Squad",),
    "Summarization": ("ROUGE",),
    "Structure-to-text": ("ROUGE", "BLEU"),
}


def cluster_of(name: str) -> str:
    """The cluster of a data set."""
    return next((cluster for cluster, sets in CLUSTERS.items() if name.startswith(sets)), OTHER)


def metrics_of(name: str) -> tuple[str, ...]:
    """Names of the metrics that its generated answers are scored by; () where nothing is usual."""
    return METRICS.get(cluster_of(name), ())
