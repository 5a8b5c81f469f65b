"""The frozen models: loading, passes and their memory, encoders, tokens. Hugging Face's model classes stay here."""

import logging

# On import they warn about kernels that are not used here; transformers and PEFT import them by themselves.
for _library in ("bitsandbytes", "torchao", "torch.utils._pytree"):
    logging.getLogger(_library).setLevel(logging.ERROR)
